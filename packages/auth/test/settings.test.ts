import { readSettings, SettingsError } from '@keytrail/settings';
import { describe, expect, test } from 'vitest';
import { authSettings } from '../src/index.ts';

function problemsWith(serviceCredential: string): string[] {
  try {
    readSettings(authSettings, {
      KEYTRAIL_JWKS_URL: 'http://127.0.0.1:1/jwks.json',
      KEYTRAIL_TOKEN_ISSUER: 'http://127.0.0.1:1',
      KEYTRAIL_SERVICE_CREDENTIAL: serviceCredential,
    });
    return [];
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error;
    return error.problems.map(({ variable, problem }) => `${variable}: ${problem}`);
  }
}

const credential = 'a-credential-of-at-least-32-characters';

describe('the service credential', () => {
  test('may have any visible ASCII characters', () => {
    expect(problemsWith(`${credential}!"#$%&'()*+,./:;<=>?@[]^_{|}~`)).toEqual([]);
  });

  test.each([
    ['a space', `${credential} and-more`],
    ['a line break at its end', `${credential}\n`],
    ['a tab', `\t${credential}`],
    ['letters beyond ASCII', `${credential}é`],
  ])('is refused with %s, as it could never authenticate', (_what, text) => {
    expect(problemsWith(text)).toEqual([expect.stringContaining('KEYTRAIL_SERVICE_CREDENTIAL: must be of visible')]);
    expect(problemsWith(text).join()).not.toContain(credential);
  });
});
