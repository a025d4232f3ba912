export { connectEvents, type EventBus, type EventBusOptions } from './bus.ts';
export * from './catalogue.ts';
export { type Consumer, type ConsumerOptions, startConsumer } from './consumer.ts';
export { answerCore, type CoreOptions, publishCore, requestCore, subscribeCore } from './core-nats.ts';
export {
  type KeptDeadLetter,
  listDeadLetters,
  type Replayed,
  type ReplayLetter,
  replayDeadLetter,
} from './dead-letters.ts';
export {
  type ErasedBatch,
  type ErasedCounts,
  type Erasing,
  type ErasingOptions,
  type Erasure,
  erasuresMigration,
  startErasing,
} from './erasures.ts';
export { type EventGauges, startEventGauges } from './event-gauges.ts';
export { type Gauges, type GaugesOptions, startGauges } from './gauges.ts';
export { type DeliveredEvent, type EventHandler, type Handler, on, onInTransaction, UnknownEvent } from './handlers.ts';
export { deadLetterRetentionMs, inboxMigration, inboxRetentionMs, purgeDeadLetters, purgeInbox } from './inbox.ts';
export { type AddEventOptions, addEvent, largestEventBytes, outboxMigration } from './outbox.ts';
export { createOutsideStore } from './outside-store.ts';
export { publishHint } from './publish.ts';
export { startPurges } from './purges.ts';
export { type Relay, type RelayOptions, startRelay } from './relay.ts';
export { type RunningFence, startRestoreFence } from './restore-fence.ts';
export { pullRevocations, type RevocationPull, type ToldRevocation } from './revocations.ts';
export { type Rounds, type RoundsOptions, startRounds } from './rounds.ts';
export { erasureSettings, eventSettings } from './settings.ts';
export type { ConsumerLag, TopologyDifference, TopologyReport } from './topology.ts';
export { warnSparingly } from './warn-sparingly.ts';
