import { expect, test } from 'vitest';
import { detectSupervisor, restartAdvice, type Surroundings, supervisors } from '../src/supervisor.ts';

const bare: Surroundings = { environment: {}, parentPid: 4711, exists: () => false };

test.each<[string, Partial<Surroundings>, string]>([
  ['nothing at all', {}, 'none'],
  [
    'a pod',
    { environment: { KUBERNETES_SERVICE_HOST: '10.0.0.1' }, exists: (path) => path === '/.dockerenv' },
    'kubernetes',
  ],
  ['a container of Docker', { exists: (path) => path === '/.dockerenv' }, 'container'],
  ['a container of Podman', { exists: (path) => path === '/run/.containerenv' }, 'container'],
  ['a unit of systemd', { environment: { INVOCATION_ID: 'a', SYSTEMD_EXEC_PID: String(process.pid) } }, 'systemd'],
  ['a child of init with an invocation', { environment: { INVOCATION_ID: 'a' }, parentPid: 1 }, 'systemd'],
  ['a shell within a unit', { environment: { INVOCATION_ID: 'a', SYSTEMD_EXEC_PID: '1' } }, 'none'],
])('in %s the supervisor is found out', (_where, differing, supervisor) => {
  expect(detectSupervisor({ ...bare, ...differing })).toBe(supervisor);
});

test('each supervisor has advice of its own, in one line that names what to restart', () => {
  const advice = supervisors.map((supervisor) => restartAdvice(supervisor, { service: 'session', host: 'h1', pid: 7 }));
  expect(new Set(advice).size).toBe(supervisors.length);
  for (const line of advice) expect(line).toMatch(/^[^\n]*(session|h1|7|make up)[^\n]*$/);
});
