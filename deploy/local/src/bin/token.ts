import { readUpState } from './up-state.ts';

// KEYTRAIL_TOKEN_COMMAND of `make up`: prints a token for the user and the device that are given, for `keytrail doctor`.
const [user, device] = process.argv.slice(2);
const state = readUpState();
if (!user || !device || !state) {
  console.error(state ? 'Usage: token.ts <user> <device>' : 'Keytrail is not up: make up');
  process.exit(2);
}
const answer = await fetch(`${state.issuer}/token`, { method: 'POST', body: JSON.stringify({ user, device }) });
console.log(((await answer.json()) as { token: string }).token);
