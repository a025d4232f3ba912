import { type DescField, type DescMessage, getOption, hasOption, ScalarType } from '@bufbuild/protobuf';
import { TimestampSchema } from '@bufbuild/protobuf/wkt';
import {
  ConversationService,
  IdentityKeysService,
  PresenceService,
  SessionHeaderSchema,
  SessionService,
} from '@keytrail/contracts';
import {
  type FieldRules,
  field as fieldRules,
  Ignore,
  message as messageRules,
} from '@keytrail/contracts/gen/buf/validate/validate_pb';
import { describe, expect, test } from 'vitest';

/** Fields that need no rule, each with the reason. Bools need none: both values are good. */
const withoutRule: Record<string, string> = {
  'keytrail.session.v1.SessionHeader.created_at':
    'signed as it is and never stored: rows have the time of the database',
};

/** Integers that need no upper bound beyond their type's, each with the reason. */
const withoutBound: Record<string, string> = {
  'keytrail.identitykeys.v1.SignedPrekey.key_id': '32 bits in a bigint column',
  'keytrail.identitykeys.v1.OneTimePrekey.key_id': '32 bits in a bigint column',
  'keytrail.identitykeys.v1.KemPrekey.key_id': '32 bits in a bigint column',
  'keytrail.identitykeys.v1.ReplenishPrekeysRequest.retire_one_time_key_ids': '32 bits in a bigint column',
  'keytrail.identitykeys.v1.ReplenishPrekeysRequest.retire_kem_key_ids': '32 bits in a bigint column',
  'keytrail.identitykeys.v1.KeyFingerprint.key_id': '32 bits in a bigint column',
  'keytrail.session.v1.Envelope.signed_prekey_id': '32 bits in a bigint column',
  'keytrail.session.v1.Envelope.kem_prekey_id': '32 bits in a bigint column',
  'keytrail.presence.v1.AttachRequest.attach_counter': 'compared as decimal digits of any length, never in a column',
};

const integerTypes = new Set([ScalarType.INT32, ScalarType.INT64, ScalarType.UINT32, ScalarType.UINT64]);
const services = [IdentityKeysService, SessionService, ConversationService, PresenceService];
const fields = fieldsReachableFrom([
  ...services.flatMap(({ methods }) => methods.map(({ input }) => input)),
  SessionHeaderSchema,
]);
const values = fields.filter(isValue).filter(({ scalar }) => scalar !== ScalarType.BOOL);
const integers = values.filter(({ scalar }) => scalar !== undefined && integerTypes.has(scalar));

describe('a field that a request can carry', () => {
  test.each(values.map((field) => [nameOf(field), field] as const))('%s has a rule', (name, field) => {
    expect(hasRule(field)).toBe(!(name in withoutRule));
  });

  test.each(integers.map((field) => [nameOf(field), field] as const))(
    '%s has an upper bound that a column holds',
    (name, field) => {
      const most = upperBound(rulesOf(field));
      if (name in withoutBound) expect(most).toBeUndefined();
      else expect(most).toBeLessThanOrEqual(2n ** 63n - 1n);
    },
  );

  test.each(
    fields.filter(({ name }) => name === 'attempt' || name === 'rejected_attempt').map((f) => [nameOf(f), f] as const),
  )('%s fits an integer', (_name, field) => expect(upperBound(rulesOf(field))).toBe(2n ** 31n - 1n));

  test.each(fields.filter(({ fieldKind }) => fieldKind === 'list').map((f) => [nameOf(f), f] as const))(
    '%s has a bound on how many',
    (_name, field) => {
      const type = rulesOf(field)?.type;
      expect(type?.case === 'repeated' && type.value.maxItems).toBeGreaterThan(0n);
    },
  );
});

const messages = new Set([
  ...fields.map(({ parent }) => parent),
  ...services.flatMap(({ methods }) => methods.map(({ input }) => input)),
]);
const overMessages = [...messages].flatMap((desc) =>
  hasOption(desc, messageRules) ? getOption(desc, messageRules).cel.map(({ id }) => [id, desc] as const) : [],
);

test.each(overMessages)('the rule %s over a whole message is named after the field that it is told of', (id, desc) => {
  expect(desc.fields.map(({ name }) => name)).toContain(id.split('.').at(-1));
});

test('each exemption is of a field that is there', () => {
  const names = new Set(fields.map(nameOf));
  for (const name of [...Object.keys(withoutRule), ...Object.keys(withoutBound)]) expect(names).toContain(name);
});

function fieldsReachableFrom(roots: readonly DescMessage[]): DescField[] {
  const seen = new Set<string>();
  const visit = (desc: DescMessage): DescField[] => {
    if (seen.has(desc.typeName) || desc.typeName === TimestampSchema.typeName) return [];
    seen.add(desc.typeName);
    return desc.fields.flatMap((field) => [field, ...(field.message ? visit(field.message) : [])]);
  };
  return roots.flatMap(visit);
}

/** Scalars, enums, times, and lists of them: what has no fields of ours with rules of their own. */
function isValue(field: DescField): boolean {
  return field.message === undefined || field.message.typeName === TimestampSchema.typeName;
}

function rulesOf(field: DescField): FieldRules | undefined {
  return hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;
}

/** Of a list, its items' rules count: a bound on how many says nothing of each. */
function hasRule(field: DescField): boolean {
  const rules = rulesOf(field);
  const own = field.fieldKind === 'list' && rules?.type.case === 'repeated' ? rules.type.value.items : rules;
  return own !== undefined && own.ignore !== Ignore.ALWAYS && (own.type.case !== undefined || own.cel.length > 0);
}

function upperBound(rules: FieldRules | undefined): bigint | undefined {
  if (rules?.type.case !== 'uint32' && rules?.type.case !== 'uint64') return undefined;
  const { const: only, lessThan } = rules.type.value as { const?: number | bigint; lessThan: Bound };
  if (only) return BigInt(only);
  if (lessThan.case === undefined) return undefined;
  return BigInt(lessThan.value) - (lessThan.case === 'lt' ? 1n : 0n);
}

type Bound = { case: 'lt' | 'lte'; value: number | bigint } | { case: undefined };

function nameOf({ parent, name }: DescField): string {
  return `${parent.typeName}.${name}`;
}
