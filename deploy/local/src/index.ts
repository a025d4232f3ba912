/** Starting, watching and stopping everything that Keytrail needs on one machine: servers and services. */
export { checkoutFolder, toolchainFolder } from './checkout.ts';
export { findFreePort } from './free-port.ts';
export type { JsonLine } from './log-lines.ts';
export { type ProcessHandle, type StartProcessOptions, startProcess } from './processes.ts';
export { ensureNats, type NatsOptions } from './servers/nats.ts';
export { ensurePostgres, type PostgresOptions } from './servers/postgres.ts';
export { ensureRedis, type RedisOptions } from './servers/redis.ts';
export {
  type Origin,
  type ServerHandle,
  type ServerKind,
  type ServerOptions,
  ServerUnavailable,
} from './servers/server.ts';
export type { Exit } from './supervision/launch.ts';
export { isRecordedAlive, type StopRecord, stopRecorded } from './supervision/stop-recorded.ts';
