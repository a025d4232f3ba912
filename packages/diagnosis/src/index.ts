export { type CatalogueEntry, type CheckCode, checkCatalogue, checkPage } from './catalogue.ts';
export { type DatabaseCheck, databaseCheck, type Outcome, type Probe, type Status } from './check.ts';
export { diagnosticsRpcs } from './diagnostics-rpcs.ts';
export type { DiagnosticsParts } from './parts.ts';
