import {
  create,
  type DescMessage,
  fromBinary,
  fromJsonString,
  type Message,
  toBinary,
  toJsonString,
} from '@bufbuild/protobuf';
import { FieldError } from '@bufbuild/protobuf/reflect';
import { refuse } from './refusal.ts';

/** The field named when the fault is not in one field but in the request as a whole. */
export const wholeRequest = 'request';

/** Throws INVALID_FIELD. */
export function decodeBinary(desc: DescMessage, bytes: Uint8Array): Message {
  try {
    return fromBinary(desc, bytes);
  } catch (error) {
    throw malformed(desc, 'Protobuf', error);
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Throws INVALID_FIELD. Fields that this build does not know are ignored, as in the binary format. */
export function decodeJson(desc: DescMessage, bytes: Uint8Array): Message {
  try {
    return fromJsonString(desc, utf8.decode(bytes), { ignoreUnknownFields: true });
  } catch (error) {
    throw malformed(desc, 'JSON', error);
  }
}

export function encodeBinary(desc: DescMessage, message: object, maxBytes: number): Uint8Array {
  return bounded(toBinary(desc, create(desc, message as Message)), maxBytes);
}

export function encodeJson(desc: DescMessage, message: object, maxBytes: number): Uint8Array {
  return bounded(Buffer.from(toJsonString(desc, create(desc, message as Message))), maxBytes);
}

/** LIMIT_EXCEEDED for a request that is too large. */
export function requestTooLarge(maxBytes: number) {
  return tooLarge('request', maxBytes);
}

function bounded(bytes: Uint8Array, maxBytes: number): Uint8Array {
  if (bytes.byteLength > maxBytes) throw tooLarge('answer', maxBytes);
  return bytes;
}

function tooLarge(scope: 'request' | 'answer', maxBytes: number) {
  const limit = `${maxBytes} bytes`;
  return refuse('LIMIT_EXCEEDED', `the ${scope} is larger than ${limit}`, { metadata: { limit, scope } });
}

function malformed(desc: DescMessage, format: string, error: unknown) {
  const problem = error instanceof Error ? error.cause : undefined;
  const field = problem instanceof FieldError ? problem.field().name : wholeRequest;
  const description = `is not a ${desc.name} in ${format}: ${error instanceof Error ? error.message : 'malformed'}`;
  return refuse('INVALID_FIELD', `${field} ${description}`, {
    metadata: { field },
    fields: [{ field, description }],
    cause: error,
  });
}
