import pg from 'pg';

const int8 = 20;
const int8Array = 1016;
const textArray = 1009;
const parseTextArray = pg.types.getTypeParser(textArray as never, 'text') as unknown as (
  text: string,
) => (string | null)[];

/** Parsers of one pool: pg's own, but int8 as bigint. Not set globally, because Prisma brings its own over the same driver. */
export const typeParsers: pg.CustomTypesConfig = {
  getTypeParser(oid: number, format?: 'text' | 'binary') {
    if (format !== 'binary') {
      if (oid === int8) return BigInt;
      if (oid === int8Array) {
        return (text: string) => parseTextArray(text).map((item) => (item === null ? null : BigInt(item)));
      }
    }
    return pg.types.getTypeParser(oid, format as 'text');
  },
} as pg.CustomTypesConfig;
