import { lookup } from 'node:dns/promises';
import { isIPv6 } from 'node:net';
import { UsageError } from '../exit-codes.ts';

/** Resolves a name to all its addresses. */
export type Resolve = (host: string) => Promise<readonly string[]>;

const resolveAll: Resolve = async (host) => (await lookup(host, { all: true })).map(({ address }) => address);

/**
 * The processes behind a gRPC target, each as a target of its own: all A and AAAA records of a name, all addresses of a list, a Unix socket as it
 * is. Throws UsageError for a target that is none, and what the resolver says.
 */
export async function addressesOf(target: string, resolve: Resolve = resolveAll): Promise<string[]> {
  const list = /^ipv([46]):(?:\/\/\/?)?(.+)$/.exec(target);
  if (list) return unique((list[2] as string).split(',').map((each) => `ipv${list[1]}:${each.trim()}`));
  if (/^unix(-abstract)?:/.test(target)) return [target];
  const [, name = ''] = /^(?:dns:(?:\/\/[^/]*\/)?)?(.+)$/.exec(target) ?? [];
  const [, bracketed, plain, port] = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(name) ?? [];
  const host = bracketed ?? plain;
  if (!host || !port)
    throw new UsageError(`not a target: ${target}; give host:port, dns:///host:port or ipv4:host:port,host:port`);
  if (/^\d+(\.\d+){3}$/.test(host)) return [`ipv4:${host}:${port}`];
  if (isIPv6(host)) return [`ipv6:[${host}]:${port}`];
  const found = await resolve(host);
  return unique(found.map((address) => (isIPv6(address) ? `ipv6:[${address}]:${port}` : `ipv4:${address}:${port}`)));
}

function unique(addresses: readonly string[]): string[] {
  return [...new Set(addresses)];
}
