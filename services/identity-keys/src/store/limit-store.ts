import type { Charge } from '../domain/claim-bill.ts';

/** `refusedBy` is the position of the bucket that refuses longest; `retryAfterUs` may be `never`. */
export type Spent =
  | { readonly allowed: true }
  | { readonly allowed: false; readonly refusedBy: number; readonly retryAfterUs: number };

/** Keeps buckets. A bill is paid as a whole or not at all. */
export interface LimitStore {
  spend(bill: readonly Charge[]): Promise<Spent> | Spent;
  refund(bill: readonly Charge[]): Promise<void> | void;
}
