import { createHash } from 'node:crypto';
import { type DescFile, toBinary } from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import { file_keytrail_common_v1_reason } from './gen/keytrail/common/v1/reason_pb.ts';
import { ConversationOperatorService } from './gen/keytrail/conversation/v1/conversation_operator_service_pb.ts';
import { ConversationService } from './gen/keytrail/conversation/v1/conversation_pb.ts';
import { file_keytrail_conversation_v1_events } from './gen/keytrail/conversation/v1/events_pb.ts';
import { DiagnosticsService } from './gen/keytrail/diagnostics/v1/diagnostics_pb.ts';
import { file_keytrail_identitykeys_v1_events } from './gen/keytrail/identitykeys/v1/events_pb.ts';
import { IdentityKeysOperatorService } from './gen/keytrail/identitykeys/v1/identity_keys_operator_service_pb.ts';
import { IdentityKeysService } from './gen/keytrail/identitykeys/v1/identity_keys_pb.ts';
import { file_keytrail_presence_v1_events } from './gen/keytrail/presence/v1/events_pb.ts';
import { PresenceOperatorService } from './gen/keytrail/presence/v1/presence_operator_service_pb.ts';
import { PresenceService } from './gen/keytrail/presence/v1/presence_pb.ts';
import { file_keytrail_session_v1_events } from './gen/keytrail/session/v1/events_pb.ts';
import { SessionOperatorService } from './gen/keytrail/session/v1/session_operator_service_pb.ts';
import { SessionService } from './gen/keytrail/session/v1/session_service_pb.ts';

const roots: readonly DescFile[] = [
  ...[
    ConversationService,
    ConversationOperatorService,
    DiagnosticsService,
    IdentityKeysService,
    IdentityKeysOperatorService,
    PresenceService,
    PresenceOperatorService,
    SessionService,
    SessionOperatorService,
  ].map(({ file }) => file),
  file_keytrail_common_v1_reason,
  file_keytrail_conversation_v1_events,
  file_keytrail_identitykeys_v1_events,
  file_keytrail_presence_v1_events,
  file_keytrail_session_v1_events,
];

/** Every file of the contracts of Keytrail, by name. */
export function contractFiles(): ReadonlyMap<string, DescFile> {
  const files = new Map<string, DescFile>();
  const add = (file: DescFile): void => {
    if (!file.name.startsWith('keytrail/') || files.has(file.name)) return;
    files.set(file.name, file);
    file.dependencies.forEach(add);
  };
  roots.forEach(add);
  return new Map([...files].sort(([a], [b]) => (a < b ? -1 : 1)));
}

let digest: string | undefined;

/**
 * SHA-256, hexadecimal, over the descriptors of all files of the contracts: the same in all processes that were made with the same
 * contracts, whatever their comments say.
 */
export function contractDigest(): string {
  digest ??= digestOf(contractFiles().values());
  return digest;
}

function digestOf(files: Iterable<DescFile>): string {
  const hash = createHash('sha256');
  for (const { name, proto } of files) {
    const bytes = toBinary(FileDescriptorProtoSchema, proto);
    hash.update(`${name}\0${bytes.byteLength}\0`).update(bytes);
  }
  return hash.digest('hex');
}
