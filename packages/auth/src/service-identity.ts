import { createHash, timingSafeEqual } from 'node:crypto';
import { AuthenticationError, type ServiceCaller, type ServiceName, serviceNames } from './caller.ts';

export const serviceScheme = 'Keytrail-Service ';

/** How a service shows its peers who it is. The shared credential is for development; mutual TLS takes its place behind the same interface. */
export interface ServiceIdentity {
  readonly service: ServiceName;
  /** The value of `authorization` for a call to a peer. */
  header(): string;
}

export function createServiceIdentity(
  config: { readonly serviceCredential?: string | undefined },
  service: ServiceName,
): ServiceIdentity {
  const credential = config.serviceCredential;
  if (credential === undefined) throw new Error('KEYTRAIL_SERVICE_CREDENTIAL is required to call other services');
  const header = `${serviceScheme}${service} ${credential}`;
  return { service, header: () => header };
}

/** Checks `Keytrail-Service <name> <credential>`; the comparison takes the same time wherever the credentials differ. */
export function createServiceVerifier(credential: string | undefined): (header: string) => ServiceCaller {
  const expected = credential === undefined ? undefined : digest(credential);
  const callers = new Map<string, ServiceCaller>(
    serviceNames.map((service) => [service, Object.freeze({ kind: 'service', service })]),
  );
  return (header) => {
    const [service = '', offered = ''] = header.slice(serviceScheme.length).split(' ');
    const caller = callers.get(service);
    const matches = expected !== undefined && timingSafeEqual(expected, digest(offered));
    if (caller === undefined || !matches)
      throw new AuthenticationError('credential', 'the service credential is not valid');
    return caller;
  };
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
