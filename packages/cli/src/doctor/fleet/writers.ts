import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Outcome } from '@keytrail/diagnosis';
import type { Asked } from '../processes.ts';

/** From the start of the last process of a roll-out to the end of the last one that it replaces, which serves until the new one is ready, and drains. */
const rollOutEndsMs = 2 * 60_000;
/** What is older was written by a process that may be gone; as with peers that were met. */
const recentMs = 10 * 60_000;

/**
 * OLD_BUILD_WRITES of one service: whether a build that none of its processes runs writes although all of them have started. `subjects`: builds
 * in its rows, as `<build> <time of its last row>`.
 */
export function judgeOldWriters(subjects: readonly string[], asked: readonly Asked[]): Outcome {
  const told = asked.flatMap(({ described }) =>
    described?.process ? [{ ...described, process: described.process }] : [],
  );
  if (told.length === 0)
    return { status: 'unknown', summary: 'no process tells which build runs', hint: 'see SERVICES_REACHABLE' };
  const running = new Set(told.map(({ process }) => process.writerBuild));
  const lastStart = Math.max(...told.map(({ process }) => millisecondsOf(process.startedAt)));
  const now = Math.max(...told.map((each) => millisecondsOf(each.now)));
  const strange = subjects
    .map((subject) => {
      const [build = '', at = ''] = subject.split(' ');
      return { build, at: Date.parse(at) };
    })
    .filter(({ build }) => !running.has(build))
    .sort((a, b) => b.at - a.at);
  const last = strange[0];
  if (!last || last.at <= lastStart)
    return {
      status: 'ok',
      summary:
        subjects.length === 0
          ? 'there are no rows'
          : `the newest rows are by builds that run${strange.length > 0 ? `, older ones by ${strange.length} before` : ''}`,
      evidence: { builds: subjects.length },
    };
  const wroteAt = new Date(last.at).toISOString();
  const evidence = { writerBuild: last.build, wroteAt, lastStart: new Date(lastStart).toISOString() };
  if (now - last.at >= recentMs)
    return {
      status: 'ok',
      summary: `the rows of the last ${recentMs / 60_000} minutes are by builds that run; ${last.build} wrote until ${wroteAt}, after the last start`,
      evidence: { builds: subjects.length, ...evidence },
    };
  const summary = `${last.build} does not run as far as the doctor sees, and wrote a row at ${wroteAt}`;
  if (last.at - lastStart < rollOutEndsMs)
    return {
      status: 'warn',
      summary: `${summary}, within ${rollOutEndsMs / 60_000} minutes of the last start`,
      evidence,
      hint: 'at the end of a roll-out this passes; otherwise a process of another build still writes: the next row by it fails',
    };
  return {
    status: 'fail',
    summary,
    evidence,
    hint: 'a process of another build still writes: find it (another deployment, a machine that was forgotten) and stop it',
  };
}

function millisecondsOf(at: Parameters<typeof timestampDate>[0] | undefined): number {
  return at ? timestampDate(at).getTime() : 0;
}
