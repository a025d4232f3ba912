/** A bearer token (JWT) whose claims name user and device, or where to get one that is valid now. */
export type Token = string | (() => string | Promise<string>);

export function tokenSource(token: Token): () => string | Promise<string> {
  return typeof token === 'string' ? () => token : token;
}
