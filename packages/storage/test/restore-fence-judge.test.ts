import { describe, expect, test } from 'vitest';
import { type Evidence, type FenceRow, judge, type OutsideRecord } from '../src/index.ts';

const place = '7000/00000001/16385';
const row: FenceRow = {
  incarnation: 'a',
  position: 10n,
  place,
  closed: false,
  here: place,
  server_started: '1',
  unaccepted: 0,
};
const outside: OutsideRecord = { incarnation: 'a', place, confirmed: 10n, reserved: 100n };
const seen = { incarnation: 'a', position: 10n };
const verdictOn = (evidence: Partial<Evidence>) =>
  judge({ row, outside, seen: undefined, timelineSwitch: 'may-lose', ...evidence }).kind;
const at = (here: string): FenceRow => ({ ...row, here });

describe('a database went back', () => {
  test.for<[string, Partial<Evidence>]>([
    ['to a position before the one confirmed outside', { row: { ...row, position: 9n } }],
    [
      'to a position before the one that this process saw, while the outside is away',
      { seen: { incarnation: 'a', position: 11n }, outside: 'unknown' },
    ],
    ['to an incarnation that has ended', { outside: { ...outside, endedBy: 'b' } }],
    [
      'to an incarnation of which nothing is known, from one that this process saw',
      { outside: undefined, seen: { incarnation: 'b', position: 1n } },
    ],
    ['on another server', { row: at('8000/00000001/16385') }],
    ['as another database of its server', { row: at('7000/00000001/20000') }],
    [
      'to an earlier timeline',
      { row: { ...at(place), place: '7000/0000000A/16385' }, timelineSwitch: 'loses-nothing' },
    ],
    ['when a standby was promoted that may have lagged', { row: at('7000/00000002/16385') }],
    [
      'when a standby was promoted that lacks a position, whatever promotions mean',
      { row: { ...at('7000/00000002/16385'), position: 9n }, timelineSwitch: 'loses-nothing' },
    ],
    [
      'though nothing is known outside, when it is not where it knows itself to be',
      { row: at('7000/00000001/20000'), outside: undefined },
    ],
  ])('%s', ([, evidence]) => {
    expect(verdictOn(evidence)).toBe('restored');
  });
});

describe('nothing is voided', () => {
  test.for<[string, Partial<Evidence>, string]>([
    ['when all agree', {}, 'ok'],
    ['when it is ahead of what was confirmed, as after a crash between both', { row: { ...row, position: 50n } }, 'ok'],
    ['when the store outside lost everything', { outside: undefined }, 'adopt'],
    ['when the store outside went back itself', { row: { ...row, position: 101n } }, 'adopt'],
    [
      'when it was moved on purpose, and knows its new place',
      { row: { ...at('8000/00000001/5'), place: '8000/00000001/5' } },
      'adopt',
    ],
    [
      'when a standby was promoted that has everything',
      { row: at('7000/00000002/16385'), timelineSwitch: 'loses-nothing' },
      'adopt',
    ],
    ['while the outside is away and this process saw it before', { outside: 'unknown', seen }, 'ok'],
  ])('%s', ([, evidence, kind]) => {
    expect(verdictOn(evidence)).toBe(kind);
  });

  test('while the outside is away and nothing of it was seen: it waits', () => {
    expect(verdictOn({ outside: 'unknown' })).toBe('undecided');
    expect(verdictOn({ outside: 'unknown', seen: { incarnation: 'b', position: 99n } })).toBe('undecided');
    expect(verdictOn({ outside: 'unknown', row: at('7000/00000002/16385'), timelineSwitch: 'loses-nothing' })).toBe(
      'undecided',
    );
  });
});

test('a restore that was noticed stays so until it is dealt with, whatever the rest says', () => {
  expect(verdictOn({ row: { ...row, closed: true } })).toBe('closed');
});
