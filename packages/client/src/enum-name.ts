import type { DescEnum } from '@bufbuild/protobuf';

/** The name of an enum value as it stands in docs/reasons, without its prefix. */
export function enumName(desc: DescEnum, value: number): string {
  return desc.value[value]?.localName ?? 'UNSPECIFIED';
}
