import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Outcome } from '@keytrail/diagnosis';
import type { Asked } from '../processes.ts';

/**
 * OLD_BUILD_WRITES of one service: whether a build that none of its processes runs has written since all of them run. `subjects`: builds in
 * its newest rows, as `<build> <time of its last row>`.
 */
export function judgeOldWriters(subjects: readonly string[], asked: readonly Asked[]): Outcome {
  const processes = asked.flatMap(({ described }) => described?.process ?? []);
  if (processes.length === 0)
    return { status: 'unknown', summary: 'no process tells which build runs', hint: 'see SERVICES_REACHABLE' };
  const running = new Set(processes.map(({ writerBuild }) => writerBuild));
  const lastStart = Math.max(...processes.map(({ startedAt }) => (startedAt ? timestampDate(startedAt).getTime() : 0)));
  const strange = subjects
    .map((subject) => {
      const [build = '', at = ''] = subject.split(' ');
      return { build, at: Date.parse(at) };
    })
    .filter(({ build }) => !running.has(build));
  const writing = strange.filter(({ at }) => at > lastStart);
  if (writing[0]) {
    const { build, at } = writing[0];
    return {
      status: 'fail',
      summary: `${build} does not run as far as the doctor sees, and wrote a row at ${new Date(at).toISOString()}`,
      evidence: {
        writerBuild: build,
        wroteAt: new Date(at).toISOString(),
        lastStart: new Date(lastStart).toISOString(),
      },
      hint: 'a process of another build still writes: find it (another deployment, a machine that was forgotten) and stop it',
    };
  }
  return {
    status: 'ok',
    summary:
      subjects.length === 0
        ? 'there are no rows'
        : `the newest rows are by builds that run${strange.length > 0 ? `, older ones by ${strange.length} before` : ''}`,
    evidence: { builds: subjects.length },
  };
}
