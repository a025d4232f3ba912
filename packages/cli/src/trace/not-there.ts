/** For who asks for a trace of which there is no span: why that may be, and what to do. */
export function whatToTry(traceId: string): string {
  return [
    `no span of trace ${traceId} is there`,
    '  not yet?   spans are sent in batches: --wait',
    '  sampled?   misses, errors and slow calls are always kept; others at the rate of KEYTRAIL_TRACE_RATIO',
    '  too old?   a backend keeps traces for a time; the local store the newest ones, misses longest',
    "  elsewhere? what the services' KEYTRAIL_OTLP_URL sends to must be what is asked here (--backend, --dialect)",
    '  a backend? any server may answer 404: --dialect says what of a backend it should be',
  ].join('\n');
}
