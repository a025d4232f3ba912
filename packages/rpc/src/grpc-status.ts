import { fromBinary } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';
import { type Metadata, Metadata as MetadataMap, type StatusObject } from '@grpc/grpc-js';
import { type Status, StatusSchema } from '@keytrail/contracts';
import { refuse } from './refusal.ts';

export type HeaderValues = ConstructorParameters<typeof Headers>[0];

const detailsKey = 'grpc-status-details-bin';

/**
 * The ConnectError of a status that a gRPC call ended with. A deadline or a cancellation that this side brought about gets
 * its reason here, as the other side is not there to name it.
 */
export function errorOfStatus(
  { code, details, metadata }: Pick<StatusObject, 'code' | 'details' | 'metadata'>,
  signal?: AbortSignal,
): ConnectError {
  // A stream that this side tore down ends with a plain Error, which has neither code nor metadata.
  if (typeof code !== 'number') return refuse('CANCELLED', 'the call was given up', { cause: signal?.reason });
  const status = readStatus(metadata);
  if (status === undefined) {
    if (signal?.aborted === true) return refuse('CANCELLED', 'the call was given up', { cause: signal.reason });
    if ((code as number) === Code.DeadlineExceeded)
      return refuse('DEADLINE_EXCEEDED', 'the deadline passed before an answer came');
  }
  const error = new ConnectError(details, code as number as Code, headersOf(metadata, new Headers()));
  error.isWireError = true;
  error.details = (status?.details ?? []).map(({ typeUrl, value }) => ({
    type: typeUrl.slice(typeUrl.lastIndexOf('/') + 1),
    value,
  }));
  return error;
}

function readStatus(metadata: Metadata | undefined): Status | undefined {
  const [bytes] = metadata?.get(detailsKey) ?? [];
  if (!(bytes instanceof Uint8Array)) return undefined;
  try {
    return fromBinary(StatusSchema, bytes);
  } catch {
    return undefined;
  }
}

/** Adds the texts of gRPC metadata to headers; binary values are left out. */
export function headersOf(metadata: Metadata | undefined, into: Headers): Headers {
  for (const [key, value] of Object.entries(metadata?.getMap() ?? {}))
    if (typeof value === 'string') into.append(key, value);
  return into;
}

export function metadataOf(header: HeaderValues): Metadata {
  const metadata = new MetadataMap();
  if (header !== undefined) for (const [key, value] of new Headers(header)) metadata.set(key, value);
  return metadata;
}
