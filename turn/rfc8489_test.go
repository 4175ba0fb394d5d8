package turn

import (
	"time"

	"github.com/pion/stun/v3"
)

// rfc8489 is what STUN requires of a server.
var rfc8489 = []requirement{
	{
		section: "5", text: "What has not the two zero bits, the magic cookie or the length of a message is none, and is dropped.",
		by: "turn:Classify turn:decodeRequest", tests: "turn:TestClassify turn:TestAdmitDrops/WrongCookie turn:TestAdmitDrops/LongerThanItSays turn:TestAdmitDrops/OddLength",
	},
	{
		section: "6.2.2", text: "Over a stream messages are told apart by their lengths, however they were cut or joined on the way.",
		by: "turn:StreamFrame turn/relay:stream.take", tests: "turn/relay:TestStreamIsReadAsItComes",
	},
	{
		section: "6.2.2", text: "A stream stays open while it is used; what is no message on it, or none that ends, has it closed.",
		by: "turn:StreamFrame turn/relay:stream.readAll", tests: "turn/relay:TestStreamsAreCutOff turn/relay:TestClientsThatLeaveAreNotCutOff",
	},
	{
		section: "6.2.3", text: "TLS is 1.2 or later.",
		by: "cmd/turnstone/internal/certs/certs.go", tests: "cmd/turnstone/internal/certs:TestNamesChooseTheCertificate",
	},
	{
		section: "6.2.3", text: "Over DTLS nothing is kept of a client before it has returned the cookie (RFC 6347 section 4.2.1), also where its ClientHello comes in parts (section 4.2.3).",
		by: "turn/relay:dtlsAccepter.receive turn/relay:partialHellos.add", tests: "turn/relay:TestDTLSKeepsNothingBeforeTheCookie turn/relay:TestDTLSClientsThatFragment turn/relay:TestDTLSHostileParts test:TestOpenSSLSendsItsHelloInParts",
	},
	{
		section: "6.3", text: "Messages of unknown methods, and classes that a server is not sent, are dropped without an answer.",
		by: "turn:decodeRequest", tests: "turn:TestAdmitDrops/UnknownMethod turn:TestAdmitDrops/Response turn:TestAdmitDrops/Indication turn:TestAdmitDrops/SendRequest",
	},
	{
		section: "6.3", text: "Known attributes that have no place in a message are ignored.",
		by: "turn:Request.decode", tests: "turn:TestAllocate/AttributesOfOtherMethods turn:TestRefresh/TransportMeansNothingHere",
	},
	{
		section: "6.3.1", text: "A retransmitted request gets the answer of the first, and does nothing again: for 40 seconds over UDP.",
		by: "turn:recall turn:AnswerLifetime turn/relay:refused.again", tests: "turn:TestRetransmission turn:TestAnswersAreForgottenAfter40Seconds turn:TestTranscripts/retransmission_over_crash turn/relay:TestRetransmittedRefusalIsTheSame",
	},
	{
		section: "6.3.1", text: "A comprehension-required attribute that is not understood refuses the request, once it is authenticated; UNKNOWN-ATTRIBUTES names it.",
		by: "turn:unknown turn:Gate.Admit", tests: "turn:TestAdmitOrder/UnknownAttribute turn:TestAdmitOrder/StaleNonceAndUnknownAttribute turn:TestBinding/Unknown",
		name: "UnknownAttribute", code: 420, ask: holding(stun.MethodRefresh, set(0x7FFE, 1)),
	},
	{
		section: "6.3.1", text: "Attributes that are comprehension-optional and not understood are ignored.",
		by: "turn:understood", tests: "turn:TestAdmitOrder/UnknownOptionalAttribute",
	},
	{
		section: "6.3.1.1", text: "The answer to a Binding request has the address it came from in XOR-MAPPED-ADDRESS.",
		by: "turn:Gate.binding", tests: "turn:TestBinding/Plain",
	},
	{
		section: "6.3.1.2", text: "The answer is sent from where the request arrived, over the stream on which it came.",
		by: "turn/relay:Server.originOf turn/relay:stream.reply", tests: "turn/relay:TestDiscoveryAnswersFromWhereItIsAsked turn/relay:TestHalfClosedStreamGetsItsAnswers",
	},
	{
		section: "6.3.2", text: "An indication is never answered; with a comprehension-required attribute that is not understood it is dropped.",
		by: "turn:ParseSend turn/relay:hand.sendIndication", tests: "turn:TestParseSend/UnknownRequired turn/relay:TestMalformedFramesAreDropped",
	},
	{
		section: "7", text: "A wrong FINGERPRINT makes a message none; a request that has a right one gets one in its answer.",
		by: "turn:decodeRequest turn:Reply.Append", tests: "turn:TestAdmitDrops/WrongFingerprint turn:TestFingerprintIsReturned turn:TestParseSend/WrongFingerprint",
	},
	{
		section: "9.1", text: "The short-term mechanism is one of two that a usage chooses from.",
		but: "TURN has chosen the long-term one (RFC 8656 section 5), and Binding requests are answered without any.",
	},
	{
		section: "9.2.1", text: "Every nonce begins with the nonce cookie and the features: password algorithms, and anonymity where all users are known.",
		by: "turn:Gate.nonceFor turn:newRealm", tests: "turn:TestOffers turn:TestParseCookie",
	},
	{
		section: "9.2.1", text: "A nonce whose feature bits were changed on the way is not valid.",
		by: "turn:Gate.nonceMAC", tests: "turn:TestRFC8489Requirements/9.2.1/FeatureStripped turn:TestRFC8489Requirements/9.2.1/FeatureAndListStripped",
		name: "FeatureStripped", code: 438, ask: func(c *core) *answerSeen {
			nonce := c.gate.nonceFor(c.gate.realms.main, alice().Client, c.now)
			list := alice().credential("obMatJos2AAAC" + nonce[cookieLength:])
			return c.send(alice(), plain(stun.MethodRefresh, txid(1), append(list, alice().key())...))
		},
	},
	{
		section: "9.2.2", text: "The key is MD5 or SHA-256 of username, realm and password, with the OpaqueString profile over all three.",
		by: "turn:algorithm.key turn:OpaqueString turn:bareName", tests: "turn:TestKeyMatchesRFC8489 turn:TestOpaqueString turn:TestBareName turn:TestRFC8489Sample turn:TestRFC5769LongTerm",
	},
	{
		section: "9.2.4", text: "A request without MESSAGE-INTEGRITY of either kind is challenged: REALM, NONCE and PASSWORD-ALGORITHMS.",
		by: "turn:Gate.authenticate turn:Gate.refuse", tests: "turn:TestRFC8489Requirements/9.2.4/NoIntegrity turn:TestAdmitOrder/NoIntegrity",
		name: "NoIntegrity", code: 401, ask: func(c *core) *answerSeen {
			return c.send(alice(), plain(allocateMethod, txid(1), transport(transportUDP)))
		},
	},
	{
		section: "9.2.4", text: "With MESSAGE-INTEGRITY of either kind and without USERNAME or USERHASH, REALM or NONCE it is bad.",
		by: "turn:credential.complete", tests: "turn:TestRFC8489Requirements/9.2.4/NoName turn:TestRFC8489Requirements/9.2.4/NoRealm turn:TestRFC8489Requirements/9.2.4/NoNonce turn:TestRFC8489Requirements/9.2.4/TwoNames",
		name: "NoName", code: 400, ask: func(c *core) *answerSeen {
			list := alice().credential(c.gate.nonceFor(c.gate.realms.main, alice().Client, c.now))[1:]
			return c.send(alice(), plain(allocateMethod, txid(1), append(list, alice().key())...))
		},
	},
	{
		section: "9.2.4", text: "Where the nonce offers password algorithms, PASSWORD-ALGORITHMS must be what was offered and PASSWORD-ALGORITHM one of them; neither means MD5.",
		by: "turn:realm.algorithm", tests: "turn:TestRFC8489Requirements/9.2.4/OnlyTheChoice turn:TestRFC8489Requirements/9.2.4/OnlyTheList turn:TestRFC8489Requirements/9.2.4/ListTurnedRound turn:TestRFC8489Requirements/9.2.4/ListWithMore turn:TestRFC8489Requirements/9.2.4/ChoiceNotOnTheList turn:TestRFC8489Requirements/9.2.4/NeitherIsMD5 turn:TestNonceOutlivesItsOffer",
		name: "OtherListThanOffered", code: 400, ask: func(c *core) *answerSeen {
			who := alice().with(algorithmSHA256, false)
			list := who.credential(c.gate.nonceFor(c.gate.realms.main, who.Client, c.now))
			list[3] = set(stun.AttrPasswordAlgorithms, 0, 2, 0, 0)
			return c.send(who, plain(allocateMethod, txid(1), append(list, who.key())...))
		},
	},
	{
		section: "9.2.4", text: "An unknown user is challenged again, by USERHASH as by USERNAME; nothing tells it from a wrong password.",
		by: "turn:Gate.verify turn:Gate.find", tests: "turn:TestRFC8489Requirements/9.2.4/UserHashUnknown turn:TestUnknownUserAndWrongPasswordLookAlike turn:TestRefusalsTakeTheSameWork",
		name: "UnknownUser", code: 401, ask: func(c *core) *answerSeen {
			return c.do(newCaller("mallory", "x", alice().Client.String()), allocateMethod, transport(transportUDP))
		},
	},
	{
		section: "9.2.4", text: "A wrong password is challenged again; where both kinds of MESSAGE-INTEGRITY are there, that of SHA-256 counts.",
		by: "turn:proven turn:proof.holds", tests: "turn:TestRFC8489Requirements/9.2.4/WrongPassword turn:TestRFC8489Requirements/9.2.4/SHA256CountsWhereBothAreAndItIsWrong turn:TestRFC8489Requirements/9.2.4/KeyOfOtherAlgorithm",
		name: "WrongPassword", code: 401, ask: func(c *core) *answerSeen {
			return c.do(newCaller("alice", "x", alice().Client.String()), allocateMethod, transport(transportUDP))
		},
	},
	{
		section: "9.2.4", text: "A nonce that is over, or was another client's, is stale; the answer has a new one.",
		by: "turn:Gate.nonceValid", tests: "turn:TestRFC8489Requirements/9.2.4/NonceStale turn:TestRFC8489Requirements/9.2.4/NonceOfOtherClient turn:TestNonce",
		name: "StaleNonce", code: 438, ask: func(c *core) *answerSeen {
			return c.send(alice(), alice().signed(c.gate, at(-2*time.Hour), allocateMethod, txid(1), []stun.Setter{transport(transportUDP)}))
		},
	},
	{
		section: "9.2.4", text: "No refusal has USERNAME, USERHASH or MESSAGE-INTEGRITY of either kind before who asks is known; 400 has no challenge either.",
		by: "turn:Gate.refuse", tests: "turn:TestRFC8489Requirements turn:TestAdmitOrder",
	},
	{
		section: "9.2.4", text: "The answer is proved by the key of the request, with SHA-256 for who knows of password algorithms, else with SHA-1; never with both.",
		by: "turn:Reply.Append", tests: "turn:TestRFC8489Requirements/9.2.4/AsItShouldBe turn:TestRFC8489Requirements/9.2.4/NeitherIsMD5WithSHA1 turn:TestModernClients",
	},
	{
		section: "10", text: "Try Alternate comes with ALTERNATE-SERVER, of the family of the client's address.",
		by: "turn:redirect turn:Rules.alternates", tests: "turn:TestRedirect/FamilyOfTheClientFirst turn:TestRedirect/NoneOfTheFamily",
		name: "TryAlternate", code: 300, ask: under(func(r *Rules) { r.Draining, r.Alternates = true, alternates(otherV4) }, asked(allocateMethod, transport(transportUDP))),
	},
	{
		section: "10", text: "A redirect is authenticated, unless the usage has no authentication.",
		by: "turn:Decide", tests: "turn:TestNobodyUnknownIsRedirected turn:TestRedirect",
	},
	{
		section: "14", text: "Of attributes that come twice the first counts.",
		by: "turn:Request.decode turn:credentialOf", tests: "turn:TestRFC8489Requirements/14/FirstOfDuplicates turn:TestAllocate/FirstOfDuplicates turn:TestParseSend/FirstOfDuplicates",
	},
	{
		section: "14.3", text: "USERNAME is UTF-8 of fewer than 509 bytes.",
		by: "turn:credential.complete", tests: "turn:TestRFC8489Requirements/14.3/TooLongUsername turn:TestRFC8489Requirements/14.3/UsernameIsNoUTF8",
		but:  "up to 763 bytes are taken, for clients of RFC 5389 may send so many. No name of the configuration is longer than 508.",
		name: "TooLongUsername", code: 400, ask: func(c *core) *answerSeen {
			return c.do(newCaller(string(make([]byte, maxUsernameReceived+1)), "x", alice().Client.String()), allocateMethod)
		},
	},
	{
		section: "14.4", text: "USERHASH is the SHA-256 of username and realm, 32 bytes.",
		by: "turn:userHash turn:credential.complete", tests: "turn:TestRFC8489Requirements/14.4/UserHash turn:TestRFC8489Requirements/14.4/UserHashShort turn:TestRFC8489Requirements/14.4/UserHashLong",
	},
	{
		section: "14.5", text: "What follows MESSAGE-INTEGRITY is ignored, but for MESSAGE-INTEGRITY-SHA256 and FINGERPRINT.",
		by: "turn:proven", tests: "turn:TestAdmitOrder/AfterIntegrity turn:TestBinding/UnknownAfterIntegrity",
	},
	{
		section: "14.6", text: "MESSAGE-INTEGRITY-SHA256 has its full 32 bytes where the usage says nothing of truncation, as TURN does.",
		by: "turn:proof.wellFormed", tests: "turn:TestRFC8489Requirements/14.6/Truncated16 turn:TestRFC8489Requirements/14.6/Truncated28 turn:TestRFC8489Requirements/14.6/IntegrityTooLong turn:TestRFC8489Requirements/14.6/IntegrityEmpty",
		name: "Truncated", code: 400, ask: func(c *core) *answerSeen {
			list := alice().credential(c.gate.nonceFor(c.gate.realms.main, alice().Client, c.now))
			return c.send(alice(), plain(allocateMethod, txid(1), append(list, set(stun.AttrMessageIntegritySHA256, make([]byte, 16)...))...))
		},
	},
	{
		section: "14.6", text: "What follows MESSAGE-INTEGRITY-SHA256 is ignored, but for FINGERPRINT.",
		by: "turn:proven", tests: "turn:TestRFC8489Requirements/14.6/IgnoredAfterSHA256",
	},
	{
		section: "14.7", text: "FINGERPRINT is the last attribute.",
		by: "turn:decodeRequest", tests: "turn:TestAdmitDrops/FingerprintNotLast turn:TestAdmitDrops/FingerprintOfOtherLength turn:TestParseSend/FingerprintNotLast",
	},
	{
		section: "14.8", text: "ERROR-CODE has a class of 3 to 6, and a reason phrase of fewer than 128 characters.",
		by: "turn:reasonPhrases turn:Reply.addAttributes", tests: "turn:TestRequirements",
	},
	{
		section: "14.8", text: "Server Error: something failed for now, and the client may try again.",
		by: "turn:refresh turn:createPermission turn:channelBind", tests: "turn:TestRefresh/DiskFull turn:TestCreatePermission/DiskFull turn:TestChannelBind/DiskFull",
		name: "ServerError", code: 500, ask: func(c *core) *answerSeen {
			c.allocated(alice())
			c.rules.Storage = RoomNone
			return c.do(alice(), stun.MethodRefresh)
		},
	},
	{
		section: "14.9", text: "REALM is shorter than 128 characters.",
		by: "turn:GateConfig cmd/turnstone/internal/config:Config.PreparedRealm", tests: "cmd/turnstone/internal/config:TestResolveErrors/RealmLong",
	},
	{
		section: "14.10", text: "NONCE is shorter than 128 characters.",
		by: "turn:Gate.nonceFor", tests: "turn:TestRFC8489Requirements",
	},
	{
		section: "14.12", text: "PASSWORD-ALGORITHM is one algorithm with its parameters; MD5 and SHA-256 have none.",
		by: "turn:parseAlgorithm", tests: "turn:TestRFC8489Requirements/14.12/ChoiceWithParameters turn:TestRFC8489Requirements/14.12/ChoiceShort turn:TestRFC8489Requirements/14.12/ChoiceEmpty",
	},
	{
		section: "14.13", text: "UNKNOWN-ATTRIBUTES lists what was not understood.",
		by: "turn:distinctUnknown", tests: "turn:TestUnknownAttributesAreBounded",
		but: "it lists the first 64, each once: one request is not to get a long answer.",
	},
	{
		section: "14.14", text: "SOFTWARE is shorter than 128 characters.",
		by: "turn:Reply.Append cmd/turnstone/internal/config:Config", tests: "cmd/turnstone/internal/config:TestResolveErrors/SoftwareLong",
	},
	{
		section: "14.16", text: "ALTERNATE-DOMAIN says whose certificate the other server shows, to who has asked over TLS or DTLS.",
		by: "turn:Request.redirected", tests: "turn:TestRedirect/Domain turn:TestRedirect/DomainOverDTLS turn:TestRedirect/NoDomainOverUDP turn:TestRedirect/NoDomainWithoutSHA256",
	},
}
