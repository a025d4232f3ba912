import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type ChangeRootKeyRequest,
  type Device,
  DeviceListSchema,
  type DeviceLogPosition,
  type RegisterDeviceRequest,
  type RevokeDeviceRequest,
  RevokedBy,
  type SetRecoveryRequest,
} from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { refuse } from '@keytrail/rpc/refusal';
import { DeviceLogWriter, unsignedRevocation } from '../../crypto/test/device-log-writer.ts';

const now = timestampFromDate(new Date('2026-01-02T03:04:05Z'));

/** The device logs, device lists and recoveries of a world: it writes down whatever it is told. */
export class WorldIdentities {
  readonly devices: Map<string, Device[]>;
  readonly logs = new Map<string, DeviceLogWriter>();
  readonly recoveries = new Map<string, Pick<SetRecoveryRequest, 'rootKey' | 'sealedRootKey'>>();
  entriesPerAnswer = 100;
  /** Users whose lists and logs are told to nobody, as to those who share no conversation with them. */
  readonly hidden = new Set<string>();

  constructor(devices: Map<string, Device[]>) {
    this.devices = devices;
  }

  logOf(userId: string): DeviceLogWriter {
    const log = this.logs.get(userId) ?? new DeviceLogWriter(userId);
    this.logs.set(userId, log);
    return log;
  }

  register({ userId }: Ref, device: Device, { rootKeyChange }: RegisterDeviceRequest): void {
    const log = this.logOf(userId);
    if (rootKeyChange) {
      this.#expectVersion(log, rootKeyChange.deviceListVersion);
      log.rootKeyChanged(rootKeyChange);
      for (const other of this.#active(userId)) this.#leaveOut(log, other);
      this.recoveries.delete(userId);
    }
    log.added(device);
    device.addedInVersion = log.version;
    this.devices.set(userId, [...(this.devices.get(userId) ?? []), device]);
  }

  list(userId: string, includeRevoked: boolean) {
    if (this.hidden.has(userId)) return create(DeviceListSchema, { userId });
    const log = this.logOf(userId);
    const devices = this.devices.get(userId) ?? [];
    return create(DeviceListSchema, {
      userId,
      version: log.version,
      rootKey: log.rootKey,
      logHead: log.version === 0n ? new Uint8Array() : log.head,
      devices: devices.filter(({ revokedAt }) => includeRevoked || !revokedAt),
    });
  }

  log({ userId, afterVersion }: DeviceLogPosition) {
    if (this.hidden.has(userId)) return { userId };
    const { entries, version, head } = this.logOf(userId);
    const news = entries.slice(Number(afterVersion), Number(afterVersion) + this.entriesPerAnswer);
    const more = Number(afterVersion) + news.length < entries.length;
    return { userId, entries: news, version, logHead: head, more };
  }

  /** As an operator does. */
  revoke(userId: string, deviceId: string): void {
    const device = this.#device(userId, deviceId);
    device.revokedAt = now;
    this.logOf(userId).revoked(device, unsignedRevocation(RevokedBy.OPERATOR));
  }

  revokeDevice(caller: Ref, { device: ref, revokedAt, signature }: RevokeDeviceRequest) {
    const device = this.#device(caller.userId, ref?.deviceId ?? '');
    const log = this.logOf(caller.userId);
    if (device.revokedAt === undefined && revokedAt) {
      device.revokedAt = now;
      const { deviceId: revokingDeviceId } = caller;
      log.revoked(device, { by: RevokedBy.USER_DEVICE, revokingDeviceId, signedAt: revokedAt, signature });
    }
    return { deviceListVersion: log.version, logHead: log.head, revokedAt: now };
  }

  changeRootKey({ userId }: Ref, { rootKeyChange, certifiedDevices }: ChangeRootKeyRequest) {
    const log = this.logOf(userId);
    if (!rootKeyChange) throw refuse('INVALID_FIELD', 'no change');
    this.#expectVersion(log, rootKeyChange.deviceListVersion);
    log.rootKeyChanged(rootKeyChange);
    const revokedDeviceIds: string[] = [];
    for (const device of this.#active(userId)) {
      const certificate = certifiedDevices.find(({ deviceId }) => deviceId === device.deviceId)?.certificate;
      if (certificate) {
        device.certificate = certificate;
        log.recertified(device);
      } else {
        this.#leaveOut(log, device);
        revokedDeviceIds.push(device.deviceId);
      }
    }
    this.recoveries.delete(userId);
    return { deviceListVersion: log.version, logHead: log.head, revokedDeviceIds };
  }

  setRecovery({ userId }: Ref, { rootKey, sealedRootKey }: SetRecoveryRequest) {
    this.recoveries.set(userId, { rootKey, sealedRootKey });
    return { updatedAt: now };
  }

  getRecovery({ userId }: Ref) {
    const recovery = this.recoveries.get(userId);
    if (!recovery) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is none');
    return { ...recovery, updatedAt: now };
  }

  #active(userId: string): Device[] {
    return (this.devices.get(userId) ?? []).filter(({ revokedAt }) => revokedAt === undefined);
  }

  #leaveOut(log: DeviceLogWriter, device: Device): void {
    device.revokedAt = now;
    log.revoked(device, unsignedRevocation(RevokedBy.ROOT_KEY_CHANGE));
  }

  #device(userId: string, deviceId: string): Device {
    const device = this.devices.get(userId)?.find((each) => each.deviceId === deviceId);
    if (!device) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'no such device');
    return device;
  }

  #expectVersion({ version }: DeviceLogWriter, seen: bigint): void {
    if (seen === version) return;
    throw refuse('DEVICE_LIST_CONFLICT', 'the list changed', { metadata: { current_version: String(version) } });
  }
}
