import { create } from '@bufbuild/protobuf';
import { ExplainKeyResponseSchema } from '@keytrail/contracts';
import { expect, test } from 'vitest';
import { exitCodeOf, explanationsTable, explanationText } from '../src/explanation-text.ts';

function ended(...notAsked: readonly (readonly string[])[]): { code: number; said: string } {
  let said = '';
  const output = {
    json: false,
    out() {},
    say(text: string) {
      said += text;
    },
  };
  const explanations = notAsked.map((each) => create(ExplainKeyResponseSchema, { notAsked: [...each] }));
  return { code: exitCodeOf(explanations, output), said };
}

test('an explanation that all services took part in ends with 0, and one that lacks any with 4 and its name', () => {
  expect(ended([], [])).toEqual({ code: 0, said: '' });
  expect(ended([], ['presence'])).toEqual({
    code: 4,
    said: 'could not be asked: presence; what rests on it is not said',
  });
  expect(ended(['presence'], ['presence', 'conversation']).said).toBe(
    'could not be asked: presence, conversation; what rests on them is not said',
  );
});

test('a device that rejected the key that is there is told as one that cannot read', () => {
  const explanation = create(ExplainKeyResponseSchema, {
    device: { userId: 'bob', deviceId: 'phone' },
    readable: true,
    findings: [{ code: 'KEY_REJECTED', summary: 'It could not use it.', remedy: 'Wait.', explainsMiss: true }],
  });
  expect(explanationText(explanation)).toContain('bob/phone cannot read this session: KEY_REJECTED');
  const session = { sessionId: 'one', epoch: 1n };
  expect(explanationsTable([{ userId: 'bob', deviceId: 'phone', session, explanation }])).toMatch(/ NO +KEY_REJECTED/);
  const [rejected] = explanation.findings;
  if (rejected) rejected.explainsMiss = false;
  expect(explanationText(explanation)).toContain('bob/phone can read this session');
});
