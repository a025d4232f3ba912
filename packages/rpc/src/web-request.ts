import type { IncomingMessage } from 'node:http';
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { base64Decode } from '@bufbuild/protobuf/wire';
import { requestTooLarge } from './message-codec.ts';
import { invalidField, refuse } from './refusal.ts';

const inflate = promisify(gunzip);

/**
 * The whole body: a message of at most `maxBytes`, and what frames it. Throws LIMIT_EXCEEDED; what is left of a body too
 * large is read and dropped.
 */
export function readBody(request: IncomingMessage, maxBytes: number, framingBytes = 0): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;
    const drop = () => {
      request.off('data', take);
      request.resume();
      reject(requestTooLarge(maxBytes));
    };
    const take = (chunk: Buffer) => {
      length += chunk.byteLength;
      if (length > maxBytes + framingBytes) drop();
      else chunks.push(chunk);
    };
    if (Number(request.headers['content-length'] ?? 0) > maxBytes + framingBytes) return drop();
    request.on('data', take);
    request.on('end', () =>
      resolve(plainBytes(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, length))),
    );
    request.on('error', () => reject(refuse('CANCELLED', 'the caller gave the call up')));
  });
}

/** Throws INVALID_FIELD for an encoding that is not spoken here or bytes that are not in it, LIMIT_EXCEEDED when they inflate too far. */
export async function decompress(
  bytes: Uint8Array,
  encoding: string | undefined,
  header: string,
  maxBytes: number,
): Promise<Uint8Array> {
  if (encoding === undefined || encoding === '' || encoding === 'identity') return bytes;
  if (encoding !== 'gzip') throw invalidField(header, `${encoding} is not supported; use gzip or identity`);
  if (bytes.byteLength === 0) return bytes;
  try {
    return plainBytes(await inflate(bytes, { maxOutputLength: maxBytes }));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') throw requestTooLarge(maxBytes);
    throw invalidField(header, 'the body is not gzip');
  }
}

export interface Envelope {
  readonly flags: number;
  readonly bytes: Uint8Array;
}

export const envelopeHeaderBytes = 5;

/** The one message of a request in envelopes (a flag byte, 4 bytes of length, the message). Throws INVALID_FIELD. */
export function readOneEnvelope(body: Uint8Array): Envelope {
  if (body.byteLength < envelopeHeaderBytes) throw invalidField('request', 'has no message');
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const end = envelopeHeaderBytes + view.getUint32(1);
  if (end > body.byteLength) throw invalidField('request', 'ends within its message');
  if (end < body.byteLength) throw invalidField('request', 'has more than one message');
  return { flags: view.getUint8(0), bytes: body.subarray(envelopeHeaderBytes, end) };
}

/** The message of a GET, from its query. Throws INVALID_FIELD. */
export function readQueryMessage(query: URLSearchParams): Uint8Array {
  const message = query.get('message');
  if (query.get('base64') !== '1') return new TextEncoder().encode(message ?? '{}');
  try {
    return base64Decode(message ?? '');
  } catch {
    throw invalidField('message', 'is not base64url');
  }
}

/** Connect-Timeout-Ms, or grpc-timeout of gRPC-Web, in ms; NaN when it cannot be read. */
export function readTimeout(connectTimeout: string | undefined, grpcTimeout: string | undefined): number | undefined {
  if (connectTimeout !== undefined) return /^\d{1,10}$/.test(connectTimeout) ? Number(connectTimeout) : Number.NaN;
  if (grpcTimeout === undefined) return undefined;
  const [, amount, unit] = /^(\d{1,8})([HMSmun])$/.exec(grpcTimeout) ?? [];
  return unit === undefined ? Number.NaN : Number(amount) * (unitMs[unit] as number);
}

const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };

function plainBytes(buffer: Buffer): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}
