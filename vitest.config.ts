import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['{packages,services}/*/test/**/*.test.ts', 'deploy/local/test/**/*.test.ts', 'test/**/*.test.ts'],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    teardownTimeout: 30_000,
    // The second that is usual is too little on a busy machine; vi.waitFor has no such setting and is told each time.
    expect: { poll: { timeout: 10_000 } },
    // The development mode of settings; tests that want another say so.
    env: { KEYTRAIL_ENVIRONMENT: 'development' },
  },
});
