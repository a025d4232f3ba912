import { describeError } from '@keytrail/telemetry';

export interface Readiness {
  readonly ready: boolean;
  /** Shown by /readyz, and logged when it changes. */
  readonly why?: string;
}

/** Ready when all of these are; `why` has what each of them says. */
export function allReady(...checks: readonly (() => Promise<Readiness>)[]): () => Promise<Readiness> {
  return async () => {
    const answers = await Promise.all(checks.map((check) => check()));
    const why = answers.flatMap((answer) => answer.why ?? []).join('; ');
    return { ready: answers.every(({ ready }) => ready), ...(why && { why }) };
  };
}

export interface ReadinessWatch {
  /** Asks now; askers at the same time share one answer. Never rejects. */
  check(): Promise<Readiness>;
  override(on: boolean): void;
  stop(): void;
}

const intervalMs = 1_000;

/** Keeps asking whether the service is ready, and tells each change. */
export function watchReadiness(
  ask: () => Promise<Readiness>,
  onChange: (readiness: Readiness) => void,
): ReadinessWatch {
  let told: Readiness = { ready: false };
  let asking: Promise<Readiness> | undefined;
  let switchedOn = true;

  function tell(readiness: Readiness): Readiness {
    const changed = readiness.ready !== told.ready || readiness.why !== told.why;
    told = readiness;
    if (changed) onChange(readiness);
    return readiness;
  }

  async function askNow(): Promise<Readiness> {
    try {
      return await ask();
    } catch (error) {
      return {
        ready: false,
        why: error instanceof Error ? describeError(error).message : 'readiness could not be found out',
      };
    }
  }

  async function check(): Promise<Readiness> {
    asking ??= askNow().finally(() => {
      asking = undefined;
    });
    const answer = await asking;
    return tell(switchedOn ? answer : { ready: false, why: 'switched off' });
  }

  const timer = setInterval(() => void check(), intervalMs);
  timer.unref();
  return {
    check,
    override(on) {
      switchedOn = on;
      if (on) void check();
      else tell({ ready: false, why: 'switched off' });
    },
    stop() {
      clearInterval(timer);
    },
  };
}
