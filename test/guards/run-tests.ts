import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';

export interface TestOutcome {
  /** Absolute path. */
  readonly file: string;
  readonly name: string;
  readonly passed: boolean;
  readonly failure: string;
}

export interface Ran {
  readonly tests: readonly TestOutcome[];
  /** Why files ran none of their tests: they do not load, or their setup failed. */
  readonly broken: readonly string[];
}

export interface TestsToRun {
  readonly folder: string;
  readonly files: readonly string[];
  /** Ends of full names. */
  readonly names: readonly string[];
  /** Sources that are other ones than in the run before, from the folder. */
  readonly changed: readonly string[];
  /** Of one test; the tests' own limits when left out. */
  readonly timeoutMs?: number;
}

/** Longer than any run takes; one that hangs in its setup ends here. */
const longestRunMs = 240_000;

/** Runs tests of one folder, one run after the other, in a process that stays. */
export class TestLane {
  readonly #folder: string;
  readonly #postgresUrl: string;
  #process: ChildProcess | undefined;

  constructor(folder: string, postgresUrl: string) {
    this.#folder = folder;
    this.#postgresUrl = postgresUrl;
  }

  /** Runs the named tests, and says of each whether it passed. */
  async run(tests: Omit<TestsToRun, 'folder'>): Promise<Ran> {
    this.#process ??= fork(join(checkoutFolder, 'test/guards/lane.ts'), {
      cwd: this.#folder,
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: { ...process.env, KEYTRAIL_POSTGRES_URL: this.#postgresUrl },
    });
    const lane = this.#process;
    let errors = '';
    const note = (chunk: Buffer) => {
      errors = (errors + chunk.toString()).slice(-4_000);
    };
    lane.stderr?.on('data', note);
    const broken = (why: string): Ran => {
      this.stop();
      return { tests: [], broken: [errors || why] };
    };
    const answer = await new Promise<Ran>((resolve) => {
      const timer = setTimeout(() => resolve(broken('the run did not end')), longestRunMs);
      const settle = (ran: Ran) => {
        clearTimeout(timer);
        lane.off('message', settle);
        lane.off('exit', exited);
        resolve(ran);
      };
      const exited = () => settle(broken('the test runner ended'));
      lane.once('message', settle);
      lane.once('exit', exited);
      lane.send({ folder: this.#folder, ...tests } satisfies TestsToRun);
    });
    lane.stderr?.off('data', note);
    return answer;
  }

  stop(): void {
    this.#process?.kill('SIGKILL');
    this.#process = undefined;
  }
}
