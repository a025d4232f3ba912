/** The direction of dependencies: what may import what. Run by `make check`. */
export default {
  forbidden: [
    {
      name: 'services-never-import-services',
      comment: 'Services call each other over gRPC by contract, never by import.',
      severity: 'error',
      from: { path: '^services/([^/]+)/' },
      to: { path: '^services/([^/]+)/', pathNot: '^services/$1/' },
    },
    {
      name: 'packages-never-import-services',
      severity: 'error',
      from: { path: '^packages/', pathNot: '^packages/cli/src/doctor/' },
      to: { path: '^(services|deploy|test)/' },
    },
    {
      name: 'doctor-imports-only-checks',
      comment:
        'The doctor runs the statements of a service itself when that is down (decision 0038): its checks, and nothing else of it.',
      severity: 'error',
      from: { path: '^packages/cli/src/doctor/' },
      to: { path: '^(services|deploy|test)/', pathNot: '^services/[^/]+/src/checks/' },
    },
    {
      name: 'checks-stand-alone',
      comment:
        'What the doctor imports of a service brings nothing else of it along; presence has no rows, and its probes ask it.',
      severity: 'error',
      from: { path: '^services/(identity-keys|session|conversation)/src/checks/' },
      to: { path: '^services/', pathNot: '^services/[^/]+/src/checks/' },
    },
    {
      name: 'domain-does-no-io',
      comment: 'domain/ is pure: it may use contracts, pure crypto and its own folder.',
      severity: 'error',
      from: { path: '^services/[^/]+/src/domain/' },
      to: {
        pathNot:
          '^(services/[^/]+/src/domain/|packages/contracts/|packages/crypto/src/(?!node)|node_modules/@bufbuild/|node_modules/@noble/)',
      },
    },
    {
      name: 'no-cycles',
      comment: 'Types may name each other; what runs may not.',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    {
      name: 'resolvable',
      severity: 'error',
      from: {},
      to: { couldNotResolve: true },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '(/gen/|/generated/|/test/)' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'node', 'types'] },
    detectProcessBuiltinModuleCalls: true,
    parser: 'swc',
  },
};
