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
      from: { path: '^packages/' },
      to: { path: '^(services|deploy|test)/' },
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
