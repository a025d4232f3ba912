import { lookup } from 'node:dns/promises';
import { isIPv6 } from 'node:net';
import { UsageError } from '../exit-codes.ts';
import { parseTarget, targetForms } from '../target.ts';

/** Resolves a name to all its addresses. */
export type Resolve = (host: string) => Promise<readonly string[]>;

const resolveAll: Resolve = async (host) => (await lookup(host, { all: true })).map(({ address }) => address);

/**
 * The processes behind a gRPC target, each as a target of its own: all A and AAAA records of a name, all addresses of a list, a Unix socket as it
 * is. Throws UsageError for a target that is none, and what the resolver says.
 */
export async function addressesOf(target: string, resolve: Resolve = resolveAll): Promise<string[]> {
  const parsed = parseTarget(target);
  if (!parsed) throw new UsageError(`not a target: ${target}; ${targetForms}`);
  if ('addresses' in parsed) return unique(parsed.addresses);
  const { host, port } = parsed;
  const found = await resolve(host);
  return unique(found.map((address) => (isIPv6(address) ? `ipv6:[${address}]:${port}` : `ipv4:${address}:${port}`)));
}

function unique(addresses: readonly string[]): string[] {
  return [...new Set(addresses)];
}
