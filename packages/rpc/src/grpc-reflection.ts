import { type DescFile, type DescService, toBinary } from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import type { Server } from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import { service as healthDefinition } from 'grpc-health-check';

type PackageDefinition = ConstructorParameters<typeof ReflectionService>[0];

/** grpc.reflection, so that grpcurl works without the contracts. */
export function addReflection(server: Server, services: readonly DescService[]): void {
  const files = new Map<string, Uint8Array>();
  for (const { file } of services) collect(file, files);
  const healthFiles = Object.values(healthDefinition).flatMap(
    (method) =>
      (method as unknown as { requestType?: { fileDescriptorProtos?: Uint8Array[] } }).requestType
        ?.fileDescriptorProtos ?? [],
  );
  const definition = {
    contracts: { fileDescriptorProtos: [...files.values(), ...healthFiles].map((bytes) => Buffer.from(bytes)) },
  };
  const names = [...services.map(({ typeName }) => typeName), 'grpc.health.v1.Health'];
  new ReflectionService(definition as unknown as PackageDefinition, { services: names }).addToServer(server);
}

function collect(file: DescFile, files: Map<string, Uint8Array>): void {
  if (files.has(file.proto.name)) return;
  files.set(file.proto.name, toBinary(FileDescriptorProtoSchema, file.proto));
  for (const dependency of file.dependencies) collect(dependency, files);
}
