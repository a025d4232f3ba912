import { type Reason, ReasonSchema } from './gen/keytrail/common/v1/reason_pb.ts';
import { type MissCause, MissCauseSchema } from './gen/keytrail/session/v1/session_pb.ts';

/** `google.rpc.ErrorInfo.domain` of every refusal of Keytrail. */
export const errorDomain = 'keytrail';

/** The name of a refusal as it travels in `google.rpc.ErrorInfo.reason`: a value of Reason or MissCause without its prefix. */
export type ReasonName = Exclude<keyof typeof Reason, 'UNSPECIFIED'>;
export type MissCauseName = Exclude<keyof typeof MissCause, 'UNSPECIFIED'>;

export function reasonName(reason: Reason): ReasonName {
  return ReasonSchema.value[reason]?.localName as ReasonName;
}

export function missCauseName(cause: MissCause): MissCauseName {
  return MissCauseSchema.value[cause]?.localName as MissCauseName;
}

/** The page of a reason or cause: below `base`, by default the place in this repository. */
export function helpUrl(name: ReasonName | MissCauseName, base = 'docs/reasons'): string {
  return `${base}/${name.toLowerCase().replaceAll('_', '-')}.md`;
}
