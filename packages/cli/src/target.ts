import { isIP, isIPv6 } from 'node:net';

/** What a gRPC target names: addresses, each a target of its own; or a name whose addresses are asked for. */
export type Target = { readonly addresses: readonly string[] } | { readonly host: string; readonly port: number };

export const targetForms = 'give host:port, dns:///host:port or ipv4:host:port,host:port';

/** `host:port`, `dns:[//server/]host:port`, `ipv4:` or `ipv6:` with a list, `unix:path`. Undefined for what is none, as a URL. */
export function parseTarget(text: string): Target | undefined {
  if (/^unix(-abstract)?:./.test(text)) return { addresses: [text] };
  const [, family, list = ''] = /^ipv([46]):(?:\/\/\/?)?(.+)$/.exec(text) ?? [];
  if (family) {
    const places = list.split(',').map((each) => each.trim());
    const fit = places.every((each) => isIP(hostAndPort(each)?.host ?? '') === Number(family));
    return fit ? { addresses: places.map((each) => `ipv${family}:${each}`) } : undefined;
  }
  const place = hostAndPort(/^(?:dns:(?:\/\/[^/]*\/)?)?(.+)$/.exec(text)?.[1] ?? '');
  if (!place) return undefined;
  const { host, port } = place;
  if (/^\d+(\.\d+){3}$/.test(host)) return { addresses: [`ipv4:${host}:${port}`] };
  return isIPv6(host) ? { addresses: [`ipv6:[${host}]:${port}`] } : place;
}

function hostAndPort(text: string): { readonly host: string; readonly port: number } | undefined {
  const [, bracketed, plain, port] = /^(?:\[([^\]]+)\]|([^:/\s]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  return host && Number(port) > 0 && Number(port) < 65_536 ? { host, port: Number(port) } : undefined;
}
