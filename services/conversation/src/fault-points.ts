/** The moments of creation, rotation and erasure at which a crash must leave nothing half done for good. */
export const faultPoints = [
  'conversation.after-candidate',
  'conversation.after-store-session',
  'conversation.before-commit',
  'conversation.after-commit',
  'conversation.during-erasure',
] as const;

export type FaultPoint = (typeof faultPoints)[number];

/** Called at each fault point; tests make it wait or die there. */
export type AtFaultPoint = (point: FaultPoint) => Promise<void>;

/** Kills this process like a power cut when it comes to the chosen point. */
export function dieAt(chosen: FaultPoint | undefined): AtFaultPoint {
  return async (point) => {
    if (point === chosen) process.kill(process.pid, 'SIGKILL');
  };
}
