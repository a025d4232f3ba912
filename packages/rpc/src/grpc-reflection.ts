import { type DescFile, type DescService, fromBinary, toBinary } from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import type { Server } from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import { ErrorInfoSchema, MissSchema } from '@keytrail/contracts';
import { service as healthDefinition } from 'grpc-health-check';

type PackageDefinition = ConstructorParameters<typeof ReflectionService>[0];

/** grpc.reflection, so that grpcurl works without the contracts, and shows the details of refusals. */
export function addReflection(server: Server, services: readonly DescService[]): void {
  const files = new Map<string, Uint8Array>();
  for (const { file } of [...services, ErrorInfoSchema, MissSchema]) collect(file, files);
  for (const file of healthFiles()) files.set('grpc/health/v1/health.proto', file);
  const definition = {
    contracts: { fileDescriptorProtos: [...files.values()].map((bytes) => Buffer.from(bytes)) },
  };
  const names = [...services.map(({ typeName }) => typeName), 'grpc.health.v1.Health'];
  new ReflectionService(definition as unknown as PackageDefinition, { services: names }).addToServer(server);
}

function collect(file: DescFile, files: Map<string, Uint8Array>): void {
  if (files.has(file.proto.name)) return;
  files.set(file.proto.name, toBinary(FileDescriptorProtoSchema, file.proto));
  for (const dependency of file.dependencies) collect(dependency, files);
}

/** As proto-loader made them, with the entries of maps named as protoc does: readers insist on it. */
function healthFiles(): Uint8Array[] {
  const { Check } = healthDefinition as unknown as Record<
    string,
    { requestType: { fileDescriptorProtos: Uint8Array[] } }
  >;
  return (Check?.requestType.fileDescriptorProtos ?? []).map((bytes) => {
    const file = fromBinary(FileDescriptorProtoSchema, bytes);
    for (const message of file.messageType)
      for (const entry of message.nestedType.filter(({ options }) => options?.mapEntry === true)) {
        for (const field of message.field) if (field.typeName === entry.name) field.typeName = `${entry.name}Entry`;
        entry.name = `${entry.name}Entry`;
      }
    return toBinary(FileDescriptorProtoSchema, file);
  });
}
