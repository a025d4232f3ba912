import { readSettings } from '@keytrail/settings';
import { databaseSettings, openDatabase } from '@keytrail/storage';
import { startTelemetry, telemetrySettings } from '@keytrail/telemetry';
import { connectEvents, eventSettings, startRelay } from '../src/index.ts';

// A relay that can be killed: started by relay.test.ts.
const config = readSettings({ ...telemetrySettings, ...databaseSettings, ...eventSettings }, process.env);
const { log } = startTelemetry({ service: 'relay', config });
const db = openDatabase({ url: config.databaseUrl, service: 'relay', connections: 2, statementTimeoutMs: 5000 });
const bus = await connectEvents({ config, log });
startRelay({ db, bus, service: 'test', log });
process.stdout.write(`${JSON.stringify({ event: 'listening' })}\n`);
