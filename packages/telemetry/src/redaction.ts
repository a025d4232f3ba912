import { databaseErrorText } from './database-error.ts';
import { pseudonym } from './pseudonym.ts';

const secretName = /(authorization|cookie|credential|password|secret|token|key|keys|ciphertext|plaintext)$/i;
const identityName = /(^|[a-z_])(user|device|member|holder|requester|initiator|recipient|sender|sealer)s?(_?ids?)?$/i;
const secretText = /\b(bearer\s+)[^\s"',;]+|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*|\b(\w+:\/\/[^\s:/@]*):[^\s@/]+@/gi;
const maxDepth = 6;

/**
 * The fields of a log line as they may leave the process: credentials and keys by name are '[redacted]', bytes are told by
 * their length, user and device ids are pseudonyms. Numbers and flags stay. The input is not changed.
 */
export function redactFields(fields: Record<string, unknown>): Record<string, unknown> {
  return redactObject(fields, 0);
}

/** A text without bearer tokens, JWTs and passwords in URLs. */
export function redactText(text: string): string {
  return text.replace(secretText, (_match, bearer?: string, url?: string) =>
    url ? `${url}:[redacted]@` : `${bearer ?? ''}[redacted]`,
  );
}

/** An error as it may leave the process. Of one from a database only names and codes: its message may quote rows. */
export function describeError(thrown: unknown): {
  type: string;
  message: string;
  code?: string | number;
  stack?: string;
} {
  if (!(thrown instanceof Error)) return { type: typeof thrown, message: redactText(String(thrown)) };
  const code = (thrown as { code?: unknown }).code;
  const type = thrown.constructor.name || thrown.name;
  const known = databaseErrorText(thrown);
  const message = known ?? redactText(thrown.message);
  const stack = known === undefined ? redactText(thrown.stack ?? '') : framesBehind(thrown, `${type}: ${message}`);
  return {
    type,
    message,
    ...((typeof code === 'string' || typeof code === 'number') && { code }),
    ...(stack && { stack }),
  };
}

/** The stack under another heading; '' when its own cannot be told from its frames. */
function framesBehind({ message, stack = '' }: Error, heading: string): string {
  const at = message === '' ? -1 : stack.indexOf(message);
  return at < 0 ? '' : heading + stack.slice(at + message.length);
}

function redactObject(fields: Record<string, unknown>, depth: number): Record<string, unknown> {
  const redacted: Record<string, unknown> = {};
  for (const name of Object.keys(fields)) redacted[name] = redactValue(name, fields[name], depth);
  return redacted;
}

function redactValue(name: string, value: unknown, depth: number): unknown {
  if (value === null || typeof value === 'number' || typeof value === 'boolean' || value === undefined) return value;
  if (secretName.test(name)) return '[redacted]';
  if (typeof value === 'string') return identityName.test(name) ? pseudonym(value) : redactText(value);
  if (typeof value === 'bigint') return String(value);
  if (value instanceof Uint8Array) return `[${value.length} bytes]`;
  if (value instanceof Error) return describeError(value);
  if (value instanceof Date) return value;
  if (typeof value !== 'object') return undefined;
  if (depth >= maxDepth) return '[deep]';
  if (Array.isArray(value)) return value.map((item) => redactValue(name, item, depth + 1));
  return redactObject(value as Record<string, unknown>, depth + 1);
}
