export type ServiceName = 'identity-keys' | 'session' | 'conversation' | 'presence';

export const serviceNames: readonly ServiceName[] = ['identity-keys', 'session', 'conversation', 'presence'];

/** Who calls: a device of a user by bearer token, another service by its identity, or an operator by scope. */
export type Caller = DeviceCaller | ServiceCaller | OperatorCaller | AnonymousCaller;

export interface DeviceCaller {
  readonly kind: 'device';
  readonly userId: string;
  readonly deviceId: string;
  /** When the token expires, in ms since the epoch: what outlives a call, as a stream does, ends then. */
  readonly expiresAtMs: number;
  readonly scopes: ReadonlySet<string>;
}

export interface ServiceCaller {
  readonly kind: 'service';
  readonly service: ServiceName;
}

export interface OperatorCaller {
  readonly kind: 'operator';
  readonly subject: string;
  readonly scopes: ReadonlySet<string>;
}

/** A caller without a token, on a method that is open to anyone. */
export interface AnonymousCaller {
  readonly kind: 'anonymous';
}

/** The wire a call came in on. Service identities are accepted on `grpc` alone: the web port faces the public. */
export type Wire = 'grpc' | 'web';

/** Why a token or credential was refused; metadata `problem` of TOKEN_INVALID, except `missing`, which is TOKEN_MISSING. */
export type AuthenticationProblem =
  | 'missing'
  | 'expired'
  | 'signature'
  | 'issuer'
  | 'audience'
  | 'claims'
  | 'algorithm'
  | 'malformed'
  | 'credential';

export class AuthenticationError extends Error {
  readonly problem: AuthenticationProblem;

  constructor(problem: AuthenticationProblem, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'AuthenticationError';
    this.problem = problem;
  }
}

/** The issuer's key set could not be fetched: nothing is known about the token. */
export class KeySetUnavailableError extends Error {
  constructor(options?: ErrorOptions) {
    super('the key set of the token issuer could not be fetched', options);
    this.name = 'KeySetUnavailableError';
  }
}
