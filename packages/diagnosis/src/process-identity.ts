import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { sourcesOnDisk, type Telemetry } from '@keytrail/telemetry';

/** What a process says of itself in every answer of diagnostics. */
export function processIdentity({ build, instance }: Pick<Telemetry, 'build' | 'instance'>) {
  return {
    service: build.service,
    version: build.version,
    revision: build.revision,
    writerBuild: build.writerBuild,
    sourcesDigest: build.sourcesDigest,
    sourcesDigestOnDisk: sourcesOnDisk(build.service),
    newestMigration: build.newestMigration,
    contractDigest: build.contractDigest,
    pid: BigInt(build.pid),
    startedAt: timestampFromDate(new Date(build.startedAt)),
    host: build.host,
    image: build.image,
    nodeVersion: build.nodeVersion,
    instanceId: instance,
    supervisor: build.supervisor,
    restartAdvice: build.restartAdvice,
  };
}
