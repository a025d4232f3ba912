import { existsSync } from 'node:fs';

/** What would start a process again when it ends. */
export const supervisors = ['kubernetes', 'systemd', 'container', 'launcher', 'none'] as const;
export type Supervisor = (typeof supervisors)[number];

/** What a process can see of its supervisor. */
export interface Surroundings {
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** 1 for a child of init. */
  readonly parentPid: number;
  readonly exists: (path: string) => boolean;
}

/** The innermost one that can be told: a container in a pod is restarted by Kubernetes. */
export function detectSupervisor({ environment, parentPid, exists }: Surroundings): Supervisor {
  if (environment.KUBERNETES_SERVICE_HOST) return 'kubernetes';
  if (environment.container || exists('/.dockerenv') || exists('/run/.containerenv')) return 'container';
  // Shells that systemd started hand INVOCATION_ID down to all that is started in them.
  if (environment.INVOCATION_ID && (parentPid === 1 || environment.SYSTEMD_EXEC_PID === String(process.pid)))
    return 'systemd';
  return 'none';
}

export function surroundings(): Surroundings {
  return { environment: process.env, parentPid: process.ppid, exists: existsSync };
}

/** How to restart a process, in one line. */
export function restartAdvice(supervisor: Supervisor, of: { service: string; host: string; pid: number }): string {
  const { service, host, pid } = of;
  switch (supervisor) {
    case 'kubernetes':
      return `kubectl rollout restart deployment of ${service}, or for this one alone: kubectl delete pod ${host}`;
    case 'container':
      return `restart the container ${host} with the runtime that started it, as docker restart ${host}`;
    case 'systemd':
      return `systemctl restart the unit of process ${pid} on ${host} (systemctl status ${pid} names it)`;
    case 'launcher':
      return 'make up starts it again only with all others, and not by itself: make down, then make up';
    case 'none':
      return `nothing starts it again: kill -TERM ${pid} on ${host}, then start node services/${service}/src/main.ts`;
  }
}
