/** Which levels and ages of a device's prekeys are right. */
export interface PrekeyLimits {
  /** A pool with fewer prekeys than this is low. */
  readonly lowBelow: number;
  /** What a device should fill each pool up to. */
  readonly refillTo: number;
  /** A signed prekey that has been current for longer is to be rotated. */
  readonly signedMaxAgeMs: number;
  /** Likewise a last-resort prekey. */
  readonly lastResortMaxAgeMs: number;
  /** A one-time prekey that has waited for longer is retired. */
  readonly oneTimeMaxAgeMs: number;
  /** For how long the private key of a replaced prekey is needed. */
  readonly graceMs: number;
}
