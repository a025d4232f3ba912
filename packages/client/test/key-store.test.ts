import { describe, test } from 'vitest';
import { keyStoreConformance, memoryKeyStore } from '../src/index.ts';

describe('the key store in memory', () => {
  for (const check of keyStoreConformance(memoryKeyStore)) test(check.name, check.run);
});
