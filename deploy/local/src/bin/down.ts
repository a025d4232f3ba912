import { parseArgs } from 'node:util';
import { isRecordedAlive, stopRecorded } from '../supervision/stop-recorded.ts';
import { readUpState, removeUpState } from './up-state.ts';

const { values } = parseArgs({ options: { help: { type: 'boolean', short: 'h' } } });
if (values.help) {
  console.log(`Usage: make down

Stops what \`make up\` started in this checkout and removes its data. Exit codes: 0 nothing runs any more, 1 it could not be stopped.`);
  process.exit(0);
}

const state = readUpState();
if (state) {
  await stopRecorded(state.record);
  if (isRecordedAlive(state.record)) {
    console.error(`process ${JSON.stringify(state.record)} is still there`);
    process.exit(1);
  }
  removeUpState();
  console.log('Keytrail is down.');
} else {
  console.log('Keytrail was not up.');
}
