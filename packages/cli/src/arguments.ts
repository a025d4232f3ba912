import { KeyRequestState, KeyRequestStateSchema } from '@keytrail/contracts';
import { InvalidArgumentError } from 'commander';

const units: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `90s`, `5m`, `2h`, `1d` in milliseconds. */
export function parseDuration(text: string): number {
  const [, amount = '', unit = ''] = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text) ?? [];
  const factor = units[unit];
  if (factor === undefined) throw new InvalidArgumentError('must be a number with ms, s, m, h or d, as 5m');
  return Number(amount) * factor;
}

/** As parseDuration, of a time in which something has to be done. */
export function parseLimit(text: string): number {
  const ms = parseDuration(text);
  if (ms === 0) throw new InvalidArgumentError('must be more than nothing, as 10s');
  return ms;
}

/** As parseDuration, of an option that may stand without one: what follows it is then taken for the duration. */
export function parseWait(text: string): number {
  if (/^[0-9a-f]{32}$|^[0-9a-f]{2}-[0-9a-f]{32}-/i.test(text))
    throw new InvalidArgumentError('took the trace id for the duration: put the id first, as trace <id> --wait');
  return parseDuration(text);
}

export const stateNames = KeyRequestStateSchema.values
  .map(({ localName }) => localName)
  .filter((name) => name !== 'UNSPECIFIED');

/** Names of states, separated by commas, in either case; `any` for all. */
export function parseStates(text: string): KeyRequestState[] {
  const names = text.toLowerCase() === 'any' ? stateNames : text.split(',').map((name) => name.trim().toUpperCase());
  const unknown = names.find((name) => !stateNames.includes(name));
  if (unknown !== undefined)
    throw new InvalidArgumentError(`must be any, or of ${stateNames.join(', ').toLowerCase()}`);
  return [...new Set(names.map((name) => KeyRequestState[name as keyof typeof KeyRequestState]))];
}

export function parseNote(text: string): string {
  if (text.trim() === '') throw new InvalidArgumentError('must say why');
  return text;
}

/** Ids of conversations and key requests: a mistyped one is told before anything is asked. */
export function parseUuid(text: string): string {
  if (!/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)) throw new InvalidArgumentError('must be a UUID');
  return text;
}

/** `user/device`. */
export function parseDevice(text: string): { readonly userId: string; readonly deviceId: string } {
  const [userId = '', deviceId = '', ...more] = text.split('/');
  if (userId === '' || deviceId === '' || more.length > 0) throw new InvalidArgumentError('must be <user>/<device>');
  return { userId, deviceId };
}

/** 32 hexadecimal digits, or a traceparent with them. */
export function parseTraceId(text: string): string {
  const id = /^(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?$/i.exec(text.trim())?.[1];
  if (id === undefined || /^0+$/.test(id)) throw new InvalidArgumentError('must be 32 hex digits, or a traceparent');
  return id.toLowerCase();
}

export function parseCount(text: string): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > 10_000)
    throw new InvalidArgumentError('must be from 1 to 10000');
  return count;
}
