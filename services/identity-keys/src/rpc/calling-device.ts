import { type Call, deviceCaller, refuse } from '@keytrail/rpc';
import type { PrismaClient } from '../store/generated/client.ts';
import { refuseRevoked } from './refuse-revoked.ts';

/** A registered device, with the signing key that is stored for it. */
export interface CallingDevice {
  readonly deviceNumber: bigint;
  readonly userId: string;
  readonly deviceId: string;
  readonly signingKey: Uint8Array;
}

/** Throws CALLER_NOT_ALLOWED, DEVICE_NOT_REGISTERED and DEVICE_REVOKED. */
export async function findCallingDevice(prisma: PrismaClient, call: Call): Promise<CallingDevice> {
  const { userId, deviceId } = deviceCaller(call);
  const device = await prisma.device.findUnique({
    where: { userId_deviceId: { userId, deviceId } },
    select: { deviceNumber: true, userId: true, deviceId: true, signingKey: true, revokedAt: true },
  });
  if (!device)
    throw refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
      metadata: { device_id: deviceId },
    });
  refuseRevoked(device, device.revokedAt);
  return device;
}
