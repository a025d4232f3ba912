export {
  type Answer,
  type AskedRequest,
  answerOnce,
  askedRequest,
  earlierAnswer,
  orAnswerMeanwhile,
} from './answer-once.ts';
export { requestIdReused } from './request-id-reused.ts';
