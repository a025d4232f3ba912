import { spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { gunzipSync } from 'node:zlib';
import { ConnectError, createClient } from '@connectrpc/connect';
import { createClient as createSdk, memoryKeyStore } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { SessionService } from '@keytrail/contracts';
import { metricRegistry, prometheusSeries } from '@keytrail/telemetry';
import { readOtlpSpans, type TraceSpan } from '@keytrail/traces';
import { startConstellation } from '../local/src/constellation.ts';
import { findFreePort } from '../local/src/free-port.ts';
import { NotAvailable } from '../local/src/servers/server.ts';
import { buildCollector } from './collector-program.ts';

// The collector of builder.yaml under collector.yaml between the real services and a receiver: what it keeps, thins, counts and masks.
const root = join(import.meta.dirname, '../..');
const hits = 400;
const misses = 40;
const share = 20;
/** Of each kind that is kept or not by what its spans say: so many are not kept by chance alone. */
const planted = 20;
const decisionWaitMs = 3_000;
const secret = `eyJ${randomBytes(12).toString('hex')}.${randomBytes(12).toString('hex')}.${randomBytes(12).toString('hex')}`;

const failures: string[] = [];
function check(what: string, holds: boolean, evidence: unknown): void {
  console.log(`check-collector: ${holds ? 'ok  ' : 'FAIL'} ${what} (${evidence})`);
  if (!holds) failures.push(what);
}

/** What the collector sends on: spans by trace. */
async function startBackend() {
  const traces = new Map<string, Map<string, TraceSpan>>();
  let bytes = '';
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    const text = (request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body).toString();
    bytes += text;
    for (const span of readOtlpSpans(JSON.parse(text))) {
      const spans = traces.get(span.traceId) ?? new Map<string, TraceSpan>();
      traces.set(span.traceId, spans.set(span.spanId, span));
    }
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    traces,
    sent: () => bytes,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** Waits until `done`, looking again and again; what it saw last is judged by the caller. */
async function until<T>(look: () => Promise<T>, done: (seen: T) => boolean, ms = 60_000): Promise<T> {
  for (const from = Date.now(); ; ) {
    const seen = await look();
    if (done(seen) || Date.now() - from > ms) return seen;
    await pause(250);
  }
}

interface PlantedSpan {
  readonly name: string;
  readonly durationMs?: number;
  readonly status?: object;
  readonly attributes?: readonly object[];
}

const newTraceIds = (count: number) => Array.from({ length: count }, () => randomBytes(16).toString('hex'));
const attribute = (key: string, value: object) => ({ key, value });

function spanOf(traceId: string, { name, durationMs = 0, status = {}, attributes = [] }: PlantedSpan): object {
  const endMs = Date.now();
  return {
    traceId,
    spanId: randomBytes(8).toString('hex'),
    name,
    kind: 2,
    startTimeUnixNano: `${endMs - durationMs}000000`,
    endTimeUnixNano: `${endMs}000000`,
    status,
    attributes,
  };
}

async function main(stack: AsyncDisposableStack): Promise<void> {
  const from = Date.now();
  const program = buildCollector();
  console.log(`check-collector: the collector is there after ${((Date.now() - from) / 1000).toFixed(1)} s`);
  const backend = stack.adopt(await startBackend(), (each) => each.stop());
  const [grpc, http, prometheus, health] = [
    await findFreePort(),
    await findFreePort(),
    await findFreePort(),
    await findFreePort(),
  ];
  const collector = spawn(program, ['--config', join(import.meta.dirname, 'collector.yaml')], {
    env: {
      ...process.env,
      KEYTRAIL_COLLECTOR_GRPC: `127.0.0.1:${grpc}`,
      KEYTRAIL_COLLECTOR_HTTP: `127.0.0.1:${http}`,
      KEYTRAIL_COLLECTOR_PROMETHEUS: `127.0.0.1:${prometheus}`,
      KEYTRAIL_COLLECTOR_HEALTH: `127.0.0.1:${health}`,
      KEYTRAIL_COLLECTOR_DECISION_WAIT: `${decisionWaitMs / 1000}s`,
      KEYTRAIL_COLLECTOR_SPANMETRICS_EVERY: '1s',
      KEYTRAIL_COLLECTOR_SHARE: String(share),
      KEYTRAIL_TRACES_BACKEND: backend.url,
      KEYTRAIL_TRACES_ENCODING: 'json',
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let said = '';
  collector.stderr.on('data', (chunk) => {
    said += chunk;
  });
  stack.defer(
    () =>
      new Promise<void>((resolve) => {
        if (collector.exitCode !== null) return resolve();
        collector.once('exit', () => resolve());
        collector.kill('SIGTERM');
      }),
  );
  const healthy = await until(
    () =>
      fetch(`http://127.0.0.1:${health}`).then(
        ({ ok }) => ok,
        () => collector.exitCode !== null,
      ),
    Boolean,
  );
  if (!healthy || collector.exitCode !== null) throw new Error(`the collector did not start:\n${said}`);

  const constellation = await startConstellation({
    name: 'check-collector',
    env: {
      KEYTRAIL_OTLP_URL: `http://127.0.0.1:${http}`,
      KEYTRAIL_TRACE_RATIO: '1',
      KEYTRAIL_METRICS_EXPORT_MS: '1000',
      KEYTRAIL_GAUGES_MS: '1000',
      KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '100000',
      KEYTRAIL_CALLER_BURST: '100000',
      // On a busy machine nothing is slow that is ordinary.
      KEYTRAIL_SLOW_MS: '60000',
    },
  });
  stack.defer(() => constellation.stop());

  const transportsOf = (user: string, device: string) =>
    createNodeTransports({
      targets: {
        identityKeys: constellation.grpcTarget('identity-keys'),
        conversation: constellation.grpcTarget('conversation'),
        session: constellation.grpcTarget('session'),
        presence: constellation.grpcTarget('presence'),
      },
      token: () => constellation.issuer.token({ userId: user, deviceId: device }),
    });
  const online = async (user: string) => {
    const client = createSdk({
      user,
      device: 'phone',
      primitives: nodePrimitives,
      keyStore: memoryKeyStore(),
      transports: transportsOf(user, 'phone'),
    });
    stack.defer(() => client.close());
    await client.register();
    await client.attach();
    return client;
  };
  const alice = await online('alice');
  await online('bob');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });

  const bobs = transportsOf('bob', 'phone');
  const sessions = createClient(SessionService, bobs.session);

  const traceparent = () => {
    const traceId = randomBytes(16).toString('hex');
    return { traceId, headers: { traceparent: `00-${traceId}-${randomBytes(8).toString('hex')}-01` } };
  };
  const hitTraces = new Set<string>();
  for (let n = 0; n < hits; n += 1) {
    const { traceId, headers } = traceparent();
    await sessions.getInitialSession({ conversationId, sessionId }, { headers });
    hitTraces.add(traceId);
  }
  // A key request from a holder to a key, so that its metrics are there too; after the reads, as those of a key that was asked for are kept.
  await sessions.requestKey({ conversationId, sessionId, kind: 2, requestId: randomUUID() });

  const missTraces = new Set<string>();
  for (let n = 0; n < misses; n += 1) {
    const { traceId, headers } = traceparent();
    await sessions
      .getInitialSession({ conversationId, sessionId: `session_${randomUUID()}` }, { headers })
      .catch((error: unknown) => {
        if (!(error instanceof ConnectError)) throw error;
        missTraces.add(traceId);
      });
  }

  const send = (spans: readonly object[]) =>
    fetch(`http://127.0.0.1:${http}/v1/traces`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        resourceSpans: [
          {
            resource: { attributes: [attribute('service.name', { stringValue: 'session' })] },
            scopeSpans: [{ scope: { name: 'planted' }, spans }],
          },
        ],
      }),
    });
  /** Sends a trace of each of some spans, as a service would; returns their ids. */
  const plant = async (span: PlantedSpan, traceIds: readonly string[] = newTraceIds(planted)) => {
    await send(traceIds.map((traceId) => spanOf(traceId, span)));
    return new Set(traceIds);
  };

  // A secret where none may be, as a service would send it that does not do what it should; in a miss, so that it is kept.
  const [leak = ''] = await plant(
    {
      name: 'leak',
      attributes: [
        attribute('keytrail.miss', { boolValue: true }),
        attribute('keytrail.reason', { stringValue: `because ${secret}` }),
        attribute('authorization', { stringValue: 'a name that is not declared' }),
      ],
    },
    newTraceIds(1),
  );
  const failed = await plant({ name: 'failed', status: { code: 2 } });
  const slow = await plant({ name: 'slow', durationMs: 600 });
  const longLived = { durationMs: 600, attributes: [attribute('keytrail.long_lived', { boolValue: true })] };
  const lasting = await plant({ name: 'lasting', ...longLived });
  const begun = await plant({ name: 'begun' }, newTraceIds(2 * planted));
  const kept = { name: 'written', attributes: [attribute('keytrail.kept', { stringValue: 'whatever' })] };
  const written = await plant(kept);

  // Writes that services keep, in traces of their own that are sampled like all others.
  const carol = await online('carol');
  const group = await carol.createConversation({ kind: 'group', members: ['alice', 'bob'] });
  for (let n = 0; n < planted; n += 1)
    await carol.changeRoles(group.conversationId, { bob: n % 2 === 0 ? 'admin' : 'member' });

  const count = (wanted: Set<string>) => [...wanted].filter((traceId) => backend.traces.has(traceId)).length;
  await until(
    async () => count(missTraces),
    (kept) => kept === missTraces.size && backend.traces.has(leak),
  );
  // What is not wanted is held for so long, and looked at once a second.
  await pause(decisionWaitMs + 2_000);
  const givenUp = [...begun].filter((traceId) => !backend.traces.has(traceId));
  check(`of ${begun.size} that have only begun most are given up`, givenUp.length >= planted, givenUp.length);
  const late = await plant({ name: 'late', attributes: [attribute('keytrail.miss', { boolValue: true })] }, givenUp);
  await plant({ name: 'later' }, givenUp);
  const spansNamed = (name: string, wanted: Set<string>) =>
    [...wanted].filter((traceId) =>
      [...(backend.traces.get(traceId)?.values() ?? [])].some((span) => span.name === name),
    ).length;
  await until(
    async () => spansNamed('later', late),
    (seen) => seen === late.size,
    10_000,
  );
  const lateOnes = spansNamed('late', late);
  check(
    'a miss that comes after its trace was given up is kept',
    lateOnes === late.size,
    `${lateOnes} of ${late.size}`,
  );
  const laterOnes = spansNamed('later', late);
  check('and so is what comes after it', laterOnes === late.size, `${laterOnes} of ${late.size}`);
  for (const [what, traceIds] of Object.entries({ failed, slow, 'said to be kept': written }))
    check(`every trace that is ${what} was kept`, count(traceIds) === planted, `${count(traceIds)} of ${planted}`);
  check('one that is meant to last is not slow', count(lasting) < planted, `${count(lasting)} of ${planted}`);
  const roleChanges = [...backend.traces.values()].filter((spans) =>
    [...spans.values()].some(
      ({ kind, attributes }) =>
        kind === 'server' && attributes['rpc.method'] === 'keytrail.conversation.v1.ConversationService/ChangeRoles',
    ),
  ).length;
  check('every write that a service keeps was kept', roleChanges === planted, `${roleChanges} of ${planted}`);
  check(`all ${misses} misses were 404s of their own`, missTraces.size === misses, missTraces.size);
  check("every miss's trace was kept", count(missTraces) === misses, `${count(missTraces)} of ${misses}`);
  const services = ['session', 'conversation', 'identity-keys', 'presence'];
  const parts = [...missTraces].map((traceId) => [...(backend.traces.get(traceId)?.values() ?? [])]);
  const incomplete = parts.filter((spans) => {
    const ids = new Set(spans.map(({ spanId }) => spanId));
    const orphans = spans.filter(({ parentSpanId }) => parentSpanId !== '' && !ids.has(parentSpanId));
    // The one without a parent here is the caller's: this check sends no span of its own.
    return orphans.length !== 1 || !spans.some(({ service }) => service === 'session') || spans.length < 4;
  });
  check('and kept whole: one root, no orphan', incomplete.length === 0, `${incomplete.length} are not`);
  const through = services.filter((service) => parts.every((spans) => spans.some((span) => span.service === service)));
  check('across the services that explain it', through.includes('conversation'), through.join(', '));
  const keptHits = count(hitTraces);
  const [least, most] = [(hits * share) / 100 / 2, ((hits * share) / 100) * 2];
  check(`of ${hits} ordinary reads about ${share} % were kept`, keptHits >= least && keptHits <= most, keptHits);

  const sent = backend.sent();
  check('a planted token was masked', sent.includes('"leak"') && !sent.includes(secret), leak);
  check(
    'an attribute that is not declared was taken out',
    !sent.includes('a name that is not declared'),
    'authorization',
  );

  const scrape = () => fetch(`http://127.0.0.1:${prometheus}/metrics`).then((answer) => answer.text());
  const read = 'rpc_method="keytrail.session.v1.SessionService/GetInitialSession"';
  const total = (text: string, name: string, ...with_: string[]) =>
    text
      .split('\n')
      .filter((line) => line.startsWith(`${name}{`) && with_.every((part) => line.includes(part)))
      .reduce(
        (sum, line) =>
          sum +
          Number(
            line
              .slice(line.lastIndexOf('}') + 1)
              .trim()
              .split(' ')[0],
          ),
        0,
      );
  const spansCounted = (text: string) =>
    total(text, 'traces_span_metrics_calls_total', read, 'service_name="session"', 'span_kind="SPAN_KIND_SERVER"');
  const scraped = await until(scrape, (text) => spansCounted(text) >= hits + misses);
  const counted = spansCounted(scraped);
  check('span metrics counted every call, before sampling', counted >= hits + misses, counted);
  const own = total(scraped, 'rpc_server_call_duration_seconds_count', read, 'job="keytrail/session"');
  check('as many as the service counted itself', own === counted, own);
  check(
    'every miss was counted by its cause',
    total(scraped, 'keytrail_misses_total') === misses,
    total(scraped, 'keytrail_misses_total'),
  );

  // Every series that an alert or a recording asks for, with the labels it is matched or grouped by.
  const rules = ['alerts.yaml', 'recording.yaml']
    .map((file) => readFileSync(join(root, 'deploy/prometheus', file), 'utf8'))
    .join('\n');
  const asked = new Map<string, Set<string>>();
  for (const [, name = '', matchers = ''] of rules.matchAll(/\b((?:keytrail|rpc)_[a-z_]+)(\{[^}]*\})?/g)) {
    const labels = asked.get(name) ?? new Set<string>();
    for (const [, label = ''] of matchers.matchAll(/([a-z_]+)(?:=~|!~|!=|=)"/g)) labels.add(label);
    asked.set(name, labels);
  }
  const series = new Set(Object.values(metricRegistry).flatMap((instrument) => prometheusSeries(instrument)));
  // No delivery failed here, and no look at a request.
  const unheard = new Set(['keytrail_messaging_redeliveries_total', 'keytrail_key_requests_postponed_total']);
  for (const [name, labels] of asked) {
    if (!series.has(name)) continue;
    if (unheard.has(name)) continue;
    const lines = scraped.split('\n').filter((line) => line.startsWith(`${name}{`));
    const missing = [...labels, 'job', 'instance'].filter((label) => !lines[0]?.includes(`${label}="`));
    check(
      `${name} is exported as it is asked for`,
      lines.length > 0 && missing.length === 0,
      missing.join(', ') || lines.length,
    );
  }
}

// No `await using`: the reader of `make check` that looks at imports cannot parse it.
const stack = new AsyncDisposableStack();
try {
  await main(stack);
} catch (error) {
  if (!(error instanceof NotAvailable)) throw error;
  console.log(`check-collector: skip: ${error.message}`);
} finally {
  await stack.disposeAsync();
}
process.exit(failures.length === 0 ? 0 : 1);
