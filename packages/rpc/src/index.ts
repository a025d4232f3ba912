export { type Call, currentCall, deviceCaller, withShareOfTime } from './call.ts';
export { type ServerConfig, serverSettings } from './config.ts';
export {
  createGrpcTransport,
  type GrpcTransport,
  type GrpcTransportOptions,
  type RetryPolicy,
} from './grpc-transport.ts';
export { connectPeer, type Peer, type PeerOptions } from './peer.ts';
export { type PeerBuildSeen, peerBuildsSeen } from './peer-builds.ts';
export { allReady, type Readiness } from './readiness.ts';
export { codeOfReason } from './reason-codes.ts';
export {
  type FieldProblem,
  invalidField,
  type Refusal,
  type RefusalDetail,
  type RefuseOptions,
  readRefusal,
  refuse,
  refuseMiss,
} from './refusal.ts';
export { type Allow, methodName, type Rpc, type RpcLimit, type RpcOptions, serverStream, unary } from './rpc.ts';
export { type RunningServer, type ServerOptions, startServer } from './server.ts';
