import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type BuildIdentity, digestSources } from '@keytrail/telemetry';

/** What a process says of itself in every answer of diagnostics. */
export function processIdentity(build: BuildIdentity) {
  return {
    service: build.service,
    version: build.version,
    revision: build.revision,
    writerBuild: build.writerBuild,
    sourcesDigest: build.sourcesDigest,
    sourcesDigestOnDisk: digestSources(build.service),
    pid: BigInt(build.pid),
    startedAt: timestampFromDate(new Date(build.startedAt)),
    host: build.host,
    nodeVersion: build.nodeVersion,
  };
}
