import { type Timestamp, timestampDate } from '@bufbuild/protobuf/wkt';
import type { ExplainKeyResponse, Finding, TimelineEntry } from '@keytrail/contracts';
import { exitCodes } from './exit-codes.ts';
import { type LookedSession, sessionOf } from './newest-sessions.ts';
import { table } from './rendering.ts';
import type { Output } from './terminal.ts';

/** A key is there, and nothing speaks against it: a device that rejected it said that it cannot use it. */
export function canRead({ readable, findings }: ExplainKeyResponse): boolean {
  return readable && !findings.some(({ explainsMiss }) => explainsMiss);
}

/** Verdict first, then what it rests on and what to do, then everything that happened. `asked`: the session that was named, if any. */
export function explanationText(explanation: ExplainKeyResponse, asked = ''): string {
  const { device, session, findings, timeline, notAsked } = explanation;
  const { sessionId, epoch } = sessionOf(explanation, asked);
  const who = `${device?.userId}/${device?.deviceId}`;
  const [first, ...more] = findings;
  const about = [
    ['device', `${who} (${explanation.userPseudonym}/${explanation.devicePseudonym} in traces)`],
    [
      'session',
      session
        ? `${session.sessionId}, epoch ${session.epoch} of ${session.conversationId}`
        : `${sessionId || '-'}${epoch > 0n ? `, epoch ${epoch}` : ''}: no row of it`,
    ],
    [
      'stored',
      session
        ? `${time(session.createdAt)} by ${session.writerBuild}, ${session.envelopesPresent} of ${session.envelopesExpected} envelopes${session.damages.length > 0 ? `; ${session.damages.join(', ')}` : ''}`
        : '-',
    ],
    [
      'current',
      explanation.currentSessionId ? `epoch ${explanation.currentEpoch}, ${explanation.currentSessionId}` : 'not known',
    ],
    ...(notAsked.length > 0 ? [['not asked', `${notAsked.join(', ')}: what rests on them is not said`]] : []),
  ];
  const parts = [
    `${who} ${canRead(explanation) ? 'can read' : 'cannot read'} this session: ${first?.code ?? ''}`,
    table(about),
    ...(first ? [findingText(first, 1)] : []),
    ...more.map((finding, place) => findingText(finding, place + 2)),
    timeline.length > 0 ? `What happened:\n${timelineText(timeline)}` : 'Nothing is recorded of what happened.',
  ];
  return parts.join('\n\n');
}

/** One device and one session. Without explanation and failure it was not looked at. */
export interface Looked {
  readonly userId: string;
  readonly deviceId: string;
  readonly session: LookedSession;
  readonly explanation?: ExplainKeyResponse | undefined;
  readonly failure?: { readonly reason: string; readonly text: string } | undefined;
}

/** A line for each device and session. */
export function explanationsTable(looked: readonly Looked[]): string {
  const rows = looked.map(({ explanation, failure, ...look }) => {
    const { sessionId, epoch } = explanation ? sessionOf(explanation, look.session.sessionId) : look.session;
    return [
      `${look.userId}/${look.deviceId}`,
      explanation?.devicePseudonym ?? '-',
      explanation ? (canRead(explanation) ? 'yes' : 'NO') : '?',
      explanation ? (explanation.findings[0]?.code ?? '-') : failure ? failure.reason || 'no answer' : 'not looked at',
      epoch > 0n ? String(epoch) : '-',
      sessionId || '-',
    ];
  });
  return table([['DEVICE', 'PSEUDONYM', 'CAN READ', 'FIRST FINDING', 'EPOCH', 'SESSION'], ...rows]);
}

/** Says which services could not be asked, if any. */
export function exitCodeOf(explanations: readonly ExplainKeyResponse[], output: Output): number {
  const away = [...new Set(explanations.flatMap(({ notAsked }) => notAsked))];
  if (away.length === 0) return exitCodes.ok;
  output.say(`could not be asked: ${away.join(', ')}; what rests on ${away.length === 1 ? 'it' : 'them'} is not said`);
  return exitCodes.incomplete;
}

function findingText(finding: Finding, place: number): string {
  const evidence = Object.entries(finding.evidence).map(([name, value]) => [`     ${name}`, value]);
  const lines = [
    `${place}. ${finding.code}${finding.explainsMiss ? ' (this alone keeps the device from reading)' : ''}`,
    `   ${finding.summary}`,
    ...(evidence.length > 0 ? [table(evidence)] : []),
    `   do:   ${finding.remedy}`,
    `   page: ${finding.page}`,
  ];
  return lines.join('\n');
}

function timelineText(timeline: readonly TimelineEntry[]): string {
  return table(
    timeline.map(({ happenedAt, event, source, details, traceId, writerBuild }) => [
      time(happenedAt),
      event,
      source,
      Object.entries(details)
        .map(([name, value]) => `${name}=${value}`)
        .join(' '),
      [writerBuild && `by ${writerBuild}`, traceId && `trace ${traceId}`].filter(Boolean).join(' '),
    ]),
  );
}

const time = (at: Timestamp | undefined) => (at ? timestampDate(at).toISOString() : '-');
