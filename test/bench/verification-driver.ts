import { readFileSync } from 'node:fs';
import { fromBinary } from '@bufbuild/protobuf';
import { ReplenishPrekeysRequestSchema } from '@keytrail/contracts';
import { keysOfPrekeys, signaturesOfPrekeys } from '../../services/identity-keys/src/domain/key-set.ts';
import { refuseInvalidKeys, refuseInvalidSignatures } from '../../services/identity-keys/src/verify-keys.ts';

/** What an upload's verification costs alone: reads the uploads, verifies them all, several at once; prints how long it took. */
export interface VerificationPlan {
  readonly uploads: readonly {
    readonly userId: string;
    readonly deviceId: string;
    /** Base64, as the request. */
    readonly signingKey: string;
    readonly request: string;
  }[];
  readonly atOnce: number;
}

const { uploads, atOnce } = JSON.parse(readFileSync(process.argv[2] as string, 'utf8')) as VerificationPlan;
const warmUps = Math.min(10, uploads.length);
await verifyAll(uploads.slice(0, warmUps));
const startedAt = performance.now();
await verifyAll(uploads);
process.stdout.write(JSON.stringify({ seconds: (performance.now() - startedAt) / 1000 }));

async function verifyAll(all: typeof uploads): Promise<void> {
  const left = all.values();
  const drain = async () => {
    for (const { userId, deviceId, signingKey, request } of left) {
      const upload = fromBinary(ReplenishPrekeysRequestSchema, Buffer.from(request, 'base64'));
      await refuseInvalidKeys(keysOfPrekeys(upload));
      await refuseInvalidSignatures(
        signaturesOfPrekeys({ userId, deviceId, signingKey: Buffer.from(signingKey, 'base64') }, upload),
      );
    }
  };
  await Promise.all(Array.from({ length: atOnce }, drain));
}
