import { Worker } from 'node:worker_threads';
import { checkEd25519, checkX25519, type KeyProblem } from './key-checks.ts';
import type { Curve } from './torsion.ts';

interface Answer {
  readonly id: number;
  readonly problem: KeyProblem | undefined;
}

interface Waiting {
  resolve(problem: KeyProblem | undefined): void;
  reject(error: unknown): void;
}

let worker: Worker | undefined;
let lastId = 0;
const waiting = new Map<number, Waiting>();

/** All rules for an X25519 identity key (32 bytes), the costly ones off the event loop. */
export async function checkIdentityKey(publicKey: Uint8Array): Promise<KeyProblem | undefined> {
  return checkX25519(publicKey) ?? (await checkInWorker('x25519', publicKey));
}

/** All rules for an Ed25519 signing or root key (32 bytes), the costly ones off the event loop. */
export async function checkSigningKey(publicKey: Uint8Array): Promise<KeyProblem | undefined> {
  return checkEd25519(publicKey) ?? (await checkInWorker('ed25519', publicKey));
}

function checkInWorker(curve: Curve, publicKey: Uint8Array): Promise<KeyProblem | undefined> {
  return new Promise((resolve, reject) => {
    const id = ++lastId;
    const target = runningWorker();
    waiting.set(id, { resolve, reject });
    target.ref();
    target.postMessage({ id, curve, publicKey: new Uint8Array(publicKey) });
  });
}

/** One worker per process, started when first needed; it keeps the process alive only while a check is under way. */
function runningWorker(): Worker {
  if (worker !== undefined) return worker;
  const started = new Worker(new URL('./torsion-worker.ts', import.meta.url));
  started.on('message', ({ id, problem }: Answer) => {
    const check = waiting.get(id);
    waiting.delete(id);
    if (waiting.size === 0) started.unref();
    check?.resolve(problem);
  });
  started.on('error', (error) => giveUp(started, error));
  started.on('exit', (code) => giveUp(started, new Error(`the key check worker ended with ${code}`)));
  worker = started;
  return started;
}

function giveUp(ended: Worker, error: unknown): void {
  if (worker !== ended) return;
  worker = undefined;
  for (const check of waiting.values()) check.reject(error);
  waiting.clear();
}
