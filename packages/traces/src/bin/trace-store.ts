import { parseArgs } from 'node:util';
import { startTraceStore } from '../store.ts';

const help = `trace-store: remembers the newest traces of the services on this machine

  --port <n>       port to listen on, 127.0.0.1 only; 0 (the default) picks a free one
  --folder <path>  also append every span to spans.jsonl there
  --help           this text

POST /v1/traces     OTLP/HTTP as JSON; set KEYTRAIL_OTLP_URL to http://127.0.0.1:<port>
GET  /traces        summaries of the newest traces; ?limit=<n>, 20 by default
GET  /traces/<id>   the spans of one trace

When it listens it prints {"event":"listening","port":<n>}; SIGTERM and SIGINT stop it.
`;

function readArguments(): { port: number; folder?: string } | 'help' {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '0' },
      folder: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) return 'help';
  const port = Number(values.port);
  if (!Number.isInteger(port) || port < 0 || port > 65_535) throw new Error('--port is a number from 0 to 65535');
  return { port, ...(values.folder !== undefined && { folder: values.folder }) };
}

async function main(): Promise<void> {
  const options = readArguments();
  if (options === 'help') {
    process.stdout.write(help);
    return;
  }
  const store = await startTraceStore(options);
  process.stdout.write(
    `${JSON.stringify({ event: 'listening', port: store.port, url: store.url, pid: process.pid })}\n`,
  );
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void store.stop());
}

main().catch((error: unknown) => {
  process.stderr.write(`trace-store: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 2;
});
