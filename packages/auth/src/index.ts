export { type Authenticator, createAuthenticator } from './authenticator.ts';
export {
  type AnonymousCaller,
  AuthenticationError,
  type AuthenticationProblem,
  type Caller,
  type DeviceCaller,
  KeySetUnavailableError,
  type OperatorCaller,
  type ServiceCaller,
  type ServiceName,
  serviceNames,
  type Wire,
} from './caller.ts';
export { type AuthConfig, authSettings } from './config.ts';
export { createServiceIdentity, type ServiceIdentity, serviceScheme } from './service-identity.ts';
export { operatorScope } from './token-verifier.ts';
