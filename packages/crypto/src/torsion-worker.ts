import { parentPort } from 'node:worker_threads';
import { type Curve, checkSubgroup } from './torsion.ts';

parentPort?.on('message', ({ id, curve, publicKey }: { id: number; curve: Curve; publicKey: Uint8Array }) => {
  parentPort?.postMessage({ id, problem: checkSubgroup(curve, publicKey) });
});
